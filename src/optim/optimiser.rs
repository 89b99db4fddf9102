//! AdamW over the trained parameters of a model, in host or device memory.
//!
//! | | CPU | GPU |
//! |---|---|---|
//! | weights of the model | the trained tensors, f32, changed in place | views into an arena: f32 master weights, or their bf16 copy |
//! | gradients of a step | added tensor by tensor, in their type | added in order to an f32 arena |
//! | frozen parameters | as they are | in the type of the model, without state |
//!
//! Both have the same state and, for the same gradients and clip coefficient, the same bits: a checkpoint of one is one of
//! the other. The norm is a sum in f64 on both, in another order.

use super::cuda::DeviceAdamW;
use super::{AdamW, AdamWConfig, ParamGroup, TensorState, clip_coefficient, global_grad_norm};
use crate::autograd::{GradSink, ParamGrads, ParamId};
use crate::cuda::Purpose;
use crate::error::{Error, Result};
use crate::nn::Params;
use crate::tensor::{DType, Device, Placement, Tensor};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The optimiser of a run, with the gradients of the step under way.
pub struct Optimiser {
    /// The trained parameters, in the order of AdamW's list.
    trained: Vec<ParamId>,
    /// Where the model is.
    placement: Placement,
    place: Place,
}

enum Place {
    Host(Host),
    Device(Box<OnDevice>),
}

struct Host {
    adamw: AdamW,
    gradients: ParamGrads,
}

struct OnDevice {
    adamw: DeviceAdamW,
    /// Frozen parameters that the model's type rounds, as they are: checkpoints hold these.
    unrounded: BTreeMap<ParamId, Tensor>,
}

impl Optimiser {
    /// Zero state for the trainable ones of `params`, which are f32 in host memory. On a GPU all parameters are moved there, one after
    /// the other: the trainable ones become views into the optimiser's arena, which [`Optimiser::step`] changes in place.
    ///
    /// Weight decay is on everything but vectors, as Hugging Face's trainer has it; `decay_all` puts it on these too, as plain
    /// `torch.optim.AdamW` does.
    ///
    /// # Errors
    /// [`Error::Usage`] if a hyper-parameter is out of its range; [`Error::Internal`] for bf16 on the CPU, which trains in f32; those of
    /// allocating and copying device memory.
    pub fn new(
        config: AdamWConfig,
        params: &mut Arc<Params>,
        decay_all: bool,
        placement: &Placement,
    ) -> Result<Optimiser> {
        let groups = param_groups(params, decay_all);
        let trained = params.iter().filter(|(_, p)| p.trainable).map(|(id, _)| id).collect();
        let place = match &placement.device {
            Device::Cpu if placement.dtype == DType::F32 => {
                Place::Host(Host { adamw: AdamW::new(config, groups)?, gradients: ParamGrads::default() })
            }
            Device::Cpu => {
                return Err(Error::Internal(format!(
                    "{} on the CPU, which trains in f32",
                    placement.dtype.name()
                )));
            }
            Device::Cuda(gpu) => {
                let adamw = DeviceAdamW::new(gpu, config, groups, placement.dtype)?;
                let mut on_device = OnDevice { adamw, unrounded: BTreeMap::new() };
                on_device.take(Arc::make_mut(params), placement)?;
                Place::Device(Box::new(on_device))
            }
        };
        Ok(Optimiser { trained, placement: placement.clone(), place })
    }

    /// Forgets the gradients of the step before, also of one that was given up.
    ///
    /// # Errors
    /// Those of launching.
    pub fn begin(&mut self) -> Result<()> {
        match &mut self.place {
            Place::Host(host) => host.gradients = ParamGrads::default(),
            Place::Device(on_device) => on_device.adamw.zero_gradients()?,
        }
        Ok(())
    }

    /// Clips the sum of the gradients to `max_grad_norm` (0: not at all) and moves the parameters that have one. Gives the norm before
    /// clipping; if that is NaN or infinite, nothing has been changed.
    ///
    /// # Errors
    /// [`Error::Internal`] if these are not the parameters that the optimiser was made for; those of launching.
    pub fn step(&mut self, params: &mut Arc<Params>, learning_rate: f64, max_grad_norm: f64) -> Result<f64> {
        match &mut self.place {
            Place::Host(host) => host.step(params, &self.trained, learning_rate, max_grad_norm),
            Place::Device(on_device) => on_device.adamw.step(learning_rate, max_grad_norm),
        }
    }

    /// The weights in f32 in host memory, for a checkpoint: those of the CPU are shared until the next step copies them.
    ///
    /// # Errors
    /// Those of copying device memory.
    pub fn weights(&self, params: &Arc<Params>) -> Result<Arc<Params>> {
        let Place::Device(on_device) = &self.place else { return Ok(params.clone()) };
        let mut weights = Params::clone(params);
        for (id, p) in weights.iter_mut() {
            p.value = match (self.trained.binary_search(&id), on_device.unrounded.get(&id)) {
                (Ok(index), _) => Tensor::new(p.value.shape(), on_device.adamw.weights(index)?)?,
                (_, Some(unrounded)) => unrounded.clone(),
                (_, None) => p.value.to_cpu()?.to_dtype(DType::F32),
            };
        }
        Ok(Arc::new(weights))
    }

    /// The state in host memory, for a checkpoint.
    ///
    /// # Errors
    /// Those of copying device memory.
    pub fn state(&self) -> Result<AdamW> {
        match &self.place {
            Place::Host(host) => Ok(host.adamw.clone()),
            Place::Device(on_device) => on_device.adamw.to_host(),
        }
    }

    /// Begins anew: moments of 0 and no steps made.
    ///
    /// # Errors
    /// Those of copying.
    pub fn forget(&mut self) -> Result<()> {
        let state = self.state()?;
        for slot in state.state() {
            let zeros = vec![0.0; slot.exp_avg.len()];
            self.restore(TensorState { name: slot.name, step: 0, exp_avg: &zeros, exp_avg_sq: &zeros })?;
        }
        Ok(())
    }

    /// Number of parameters that have state.
    pub fn len(&self) -> usize {
        self.trained.len()
    }

    /// Whether nothing is trained.
    pub fn is_empty(&self) -> bool {
        self.trained.is_empty()
    }

    /// Puts back the saved state of one parameter.
    ///
    /// # Errors
    /// [`Error::Input`] if no parameter has this name or the lengths differ; those of copying.
    pub fn restore(&mut self, state: TensorState) -> Result<()> {
        match &mut self.place {
            Place::Host(host) => host.adamw.restore(state),
            Place::Device(on_device) => on_device.adamw.restore(state),
        }
    }

    /// Puts back the weights of one parameter, trained or not, given in f32.
    ///
    /// # Errors
    /// [`Error::Internal`] if they are not as many as it has; those of copying.
    pub fn set_weights(&mut self, params: &mut Arc<Params>, id: ParamId, values: &[f32]) -> Result<()> {
        let p = Arc::make_mut(params).of_mut(id);
        if p.value.len() != values.len() {
            return Err(Error::Internal(format!(
                "{} weights for {} of {}",
                values.len(),
                p.value.len(),
                p.name
            )));
        }
        match &mut self.place {
            Place::Host(_) => p.value.make_mut::<f32>()?.copy_from_slice(values),
            Place::Device(on_device) => match self.trained.binary_search(&id) {
                Ok(index) => on_device.adamw.set_weights(index, values)?,
                Err(_) => {
                    let given = Tensor::new(p.value.shape(), values.to_vec())?;
                    p.value = on_device.freeze(id, given, &self.placement)?;
                }
            },
        }
        Ok(())
    }
}

/// Micro-batches are given in their order. On a GPU a gradient is added to the arena at once and freed; it is refused if its parameter
/// is not trained.
impl GradSink for Optimiser {
    fn add(&mut self, id: ParamId, grad: Tensor) -> Result<()> {
        match &mut self.place {
            Place::Host(host) => host.gradients.add(id, grad),
            Place::Device(on_device) => {
                let index = self.trained.binary_search(&id).map_err(|_| not_trained(id))?;
                on_device.adamw.add_gradient(index, &grad)
            }
        }
    }
}

impl Host {
    fn step(
        &mut self,
        params: &mut Arc<Params>,
        trained: &[ParamId],
        learning_rate: f64,
        max_grad_norm: f64,
    ) -> Result<f64> {
        let gradients = std::mem::take(&mut self.gradients);
        let tensors: Vec<_> = trained.iter().map(|&id| gradients.of(id).map(Tensor::to_f32)).collect();
        let present: Vec<&[f32]> = tensors.iter().flatten().map(AsRef::as_ref).collect();
        let norm = global_grad_norm(&present);
        if !norm.is_finite() {
            return Ok(norm);
        }
        let list = Arc::make_mut(params);
        let mut pairs = Vec::with_capacity(trained.len());
        for ((_, parameter), grad) in list.iter_mut().filter(|(_, p)| p.trainable).zip(&tensors) {
            pairs.push((parameter.value.make_mut::<f32>()?, grad.as_deref()));
        }
        self.adamw.step(&mut pairs, learning_rate, clip_coefficient(norm, max_grad_norm))?;
        Ok(norm)
    }
}

impl OnDevice {
    /// Moves all parameters to the GPU.
    fn take(&mut self, params: &mut Params, placement: &Placement) -> Result<()> {
        let mut index = 0;
        for (id, p) in params.iter_mut() {
            if p.trainable {
                self.adamw.set_weights(index, &p.value.to_f32())?;
                p.value = self.adamw.tensor(index, p.value.shape())?;
                index += 1;
            } else {
                p.value = self.freeze(id, p.value.clone(), placement)?;
            }
        }
        Ok(())
    }

    /// A frozen parameter, given in f32, for the model.
    fn freeze(&mut self, id: ParamId, given: Tensor, placement: &Placement) -> Result<Tensor> {
        let of_model = given.to_dtype(placement.dtype);
        let on_device = of_model.to_device(&placement.device, Purpose::Weights)?;
        let back = of_model.to_dtype(DType::F32);
        let is_exact =
            back.to_f32().iter().zip(given.to_f32().iter()).all(|(a, b)| a.to_bits() == b.to_bits());
        match is_exact {
            true => self.unrounded.remove(&id),
            false => self.unrounded.insert(id, given),
        };
        Ok(on_device)
    }
}

fn not_trained(id: ParamId) -> Error {
    Error::Internal(format!("a gradient of parameter {}, which is not trained", id.0))
}

/// The trainable parameters as AdamW's list.
pub fn param_groups(params: &Params, decay_all: bool) -> Vec<ParamGroup> {
    params
        .iter()
        .filter(|(_, p)| p.trainable)
        .map(|(_, p)| ParamGroup {
            name: p.name.clone(),
            len: p.value.len(),
            decay: decay_all || p.value.shape().len() > 1,
        })
        .collect()
}
