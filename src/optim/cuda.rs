//! AdamW and the global gradient norm on a GPU (`kernels/adamw.cu`), over flat arenas.
//!
//! Four arenas in f32 (master weights, gradients, both moments), and one in bf16 for the model's copy of the weights, hold all
//! parameters one behind the other. One launch updates everything, guided by a table of chunks, each a piece of one parameter.
//! The gradient norm is summed in f64 in two fixed stages; the clip coefficient is formed on the GPU, where the update reads it,
//! so that the host waits only for the norm, once everything is asked for.
//!
//! The update has the bits of [`super::AdamW`] for the same coefficient (the norm is summed in another order than
//! [`super::global_grad_norm`]'s, both in f64), and the same state: a checkpoint of one is one of the other.

use super::{AdamW, AdamWConfig, ParamGroup, TensorState};
use crate::cuda::kernels::{adamw as kernels, elementwise};
use crate::cuda::{Buffer, Const, Gpu, Grid, Mut, Purpose};
use crate::error::{Error, Result};
use crate::ops::Cost;
use crate::tensor::{DType, DeviceReal, Tensor};
use half::bf16;

/// Threads of a block (the kernels' launch bounds).
const THREADS: u32 = 256;

/// Elements of a chunk: a block's share.
const CHUNK: usize = 4096;

/// Parameters begin at multiples of this many elements: whole packs, whole lines of the cache.
const ALIGNMENT: usize = 128;

/// Elements a thread of the casting and accumulating kernels has.
const PER_THREAD: usize = 8;

type Accumulate<T> = unsafe fn(&Gpu, Grid, Mut<f32>, Const<T>, i64) -> Result<()>;

/// The optimiser with its state, gradients and weights in device memory.
pub struct DeviceAdamW {
    gpu: Gpu,
    config: AdamWConfig,
    slots: Vec<Slot>,
    master: Buffer<f32>,
    copy: Option<Buffer<bf16>>,
    gradients: Buffer<f32>,
    exp_avg: Buffer<f32>,
    exp_avg_sq: Buffer<f32>,
    chunks: Chunks,
    /// Sums of squares of the chunks.
    partial: Buffer<f64>,
    /// Four numbers for each parameter, as the kernels' `Scalars`.
    scalars: Buffer<f32>,
    norm_and_clip: Buffer<f64>,
}

/// A parameter's place in the arenas.
struct Slot {
    param: ParamGroup,
    begin: usize,
    step: u64,
    /// Whether it has got a gradient since the last [`DeviceAdamW::zero_gradients`].
    has_gradient: bool,
}

/// The chunk table.
struct Chunks {
    count: usize,
    begin: Buffer<i64>,
    length: Buffer<i32>,
    tensor: Buffer<i32>,
}

/// The state of one parameter, copied to the host.
#[derive(Clone, Debug, PartialEq)]
pub struct HostState {
    /// The parameter's name.
    pub name: String,
    /// Updates made.
    pub step: u64,
    /// First moment, `m`.
    pub exp_avg: Vec<f32>,
    /// Second moment, `v`.
    pub exp_avg_sq: Vec<f32>,
}

impl HostState {
    /// As a checkpoint takes it.
    pub fn view(&self) -> TensorState<'_> {
        TensorState {
            name: &self.name,
            step: self.step,
            exp_avg: &self.exp_avg,
            exp_avg_sq: &self.exp_avg_sq,
        }
    }
}

impl DeviceAdamW {
    /// Zero weights, gradients and state for `params`; they are known by their places in this list. The model computes in
    /// `dtype`: with bf16 its weights are a rounded copy of the master weights, with f32 these themselves.
    ///
    /// # Errors
    /// [`Error::Usage`] if a hyper-parameter is out of its range; those of allocating.
    pub fn new(gpu: &Gpu, config: AdamWConfig, params: Vec<ParamGroup>, dtype: DType) -> Result<DeviceAdamW> {
        config.check()?;
        let mut end = 0;
        let place = |param: ParamGroup| {
            let begin = end;
            end += param.len.next_multiple_of(ALIGNMENT);
            Slot { param, begin, step: 0, has_gradient: false }
        };
        let slots: Vec<Slot> = params.into_iter().map(place).collect();
        let chunks = Chunks::of(gpu, &slots)?;
        let arena = |purpose| gpu.zeros::<f32>(end, purpose);
        let copy = match dtype {
            DType::Bf16 => Some(gpu.zeros::<bf16>(end, Purpose::Weights)?),
            _ => None,
        };
        Ok(DeviceAdamW {
            gpu: gpu.clone(),
            config,
            master: arena(if copy.is_some() { Purpose::Optimiser } else { Purpose::Weights })?,
            copy,
            gradients: arena(Purpose::Gradients)?,
            exp_avg: arena(Purpose::Optimiser)?,
            exp_avg_sq: arena(Purpose::Optimiser)?,
            partial: gpu.alloc(chunks.count, Purpose::Optimiser)?,
            chunks,
            scalars: gpu.alloc(4 * slots.len(), Purpose::Optimiser)?,
            norm_and_clip: gpu.alloc(2, Purpose::Optimiser)?,
            slots,
        })
    }

    /// Operations and bytes of [`DeviceAdamW::step`] for n elements, the gradient norm included: gradients are read twice.
    pub fn cost(n: usize, dtype: DType) -> Cost {
        let copy = if dtype == DType::Bf16 { 2 } else { 0 };
        Cost { flops: 18 * n as u64, bytes: ((32 + copy) * n) as u64 }
    }

    fn slot(&self, index: usize, len: usize) -> Result<&Slot> {
        match self.slots.get(index) {
            Some(slot) if slot.param.len == len => Ok(slot),
            slot => Err(Error::Internal(format!(
                "{len} elements for parameter {index} of AdamW, which has {:?}",
                slot.map(|slot| slot.param.len)
            ))),
        }
    }

    /// Sets the master weights of parameter `index`, and the model's.
    ///
    /// # Errors
    /// [`Error::Internal`] for another length; those of copying.
    pub fn set_weights(&mut self, index: usize, values: &[f32]) -> Result<()> {
        let begin = self.slot(index, values.len())?.begin;
        self.master.write_at(begin, values)?;
        let Some(copy) = &mut self.copy else { return Ok(()) };
        if values.is_empty() {
            return Ok(());
        }
        let grid = Grid::new(values.len().div_ceil(PER_THREAD * THREADS as usize), THREADS)?;
        let (from, to) = (self.master.ptr().offset(begin), copy.ptr_mut().offset(begin));
        // SAFETY: both arenas hold the parameter's elements from `begin` on.
        unsafe { elementwise::cast_to_bf16(&self.gpu, grid, from, to, values.len() as i64) }
    }

    /// The master weights of parameter `index`, copied to the host.
    ///
    /// # Errors
    /// [`Error::Internal`] without such a parameter; those of copying.
    pub fn weights(&self, index: usize) -> Result<Vec<f32>> {
        let slot = self.at(index)?;
        self.master.download_at(slot.begin, slot.param.len)
    }

    /// Parameter `index` for the model to compute with: a view into the arena of the bf16 copy, or of the master weights, which
    /// [`DeviceAdamW::step`] and [`DeviceAdamW::set_weights`] change in place.
    ///
    /// # Errors
    /// [`Error::Internal`] without such a parameter, or for a shape of another size.
    pub fn tensor(&self, index: usize, shape: &[usize]) -> Result<Tensor> {
        let slot = self.at(index)?;
        let (begin, len) = (slot.begin, slot.param.len);
        match &self.copy {
            Some(copy) => Tensor::from_buffer(shape, copy.view(begin, len)?),
            None => Tensor::from_buffer(shape, self.master.view(begin, len)?),
        }
    }

    fn at(&self, index: usize) -> Result<&Slot> {
        self.slots.get(index).ok_or_else(|| Error::Internal(format!("AdamW has no parameter {index}")))
    }

    /// Sets all gradients to 0, as of parameters that took no part.
    ///
    /// # Errors
    /// Those of launching.
    pub fn zero_gradients(&mut self) -> Result<()> {
        self.slots.iter_mut().for_each(|slot| slot.has_gradient = false);
        self.gradients.fill_zero()
    }

    /// Adds a gradient of parameter `index`, f32 or bf16, in f32.
    ///
    /// # Errors
    /// [`Error::Internal`] for another length, or a tensor that is not in device memory; those of launching.
    pub fn add_gradient(&mut self, index: usize, gradient: &Tensor) -> Result<()> {
        match gradient.dtype() {
            DType::Bf16 => self.add_gradient_of::<bf16>(index, gradient, elementwise::accumulate_bf16),
            _ => self.add_gradient_of::<f32>(index, gradient, elementwise::accumulate_f32),
        }
    }

    fn add_gradient_of<T: DeviceReal>(
        &mut self,
        index: usize,
        gradient: &Tensor,
        kernel: Accumulate<T>,
    ) -> Result<()> {
        let n = gradient.len();
        let begin = self.slot(index, n)?.begin;
        let from = gradient.buffer::<T>()?;
        if from.gpu() != &self.gpu {
            return Err(Error::Internal("a gradient in another GPU's memory than the optimiser's".into()));
        }
        let from = from.ptr();
        self.slots[index].has_gradient = true;
        if n == 0 {
            return Ok(());
        }
        let grid = Grid::new(n.div_ceil(PER_THREAD * THREADS as usize), THREADS)?;
        // SAFETY: the gradient holds n elements, and so does the arena from `begin` on.
        unsafe { kernel(&self.gpu, grid, self.gradients.ptr_mut().offset(begin), from, n as i64) }
    }

    /// Clips the gradients to `max_grad_norm` (0: not at all) and updates every parameter that has one. Gives the norm before
    /// clipping. If that is NaN or infinite, nothing has been changed.
    ///
    /// # Errors
    /// Those of launching.
    pub fn step(&mut self, learning_rate: f64, max_grad_norm: f64) -> Result<f64> {
        let scalars: Vec<f32> =
            self.slots.iter().flat_map(|slot| self.scalars_of(slot, learning_rate)).collect();
        self.scalars.write(&scalars)?;
        self.launch(max_grad_norm)?;
        let norm = self.norm_and_clip.download_at(0, 1)?[0];
        if norm.is_finite() {
            self.slots.iter_mut().filter(|slot| slot.has_gradient).for_each(|slot| slot.step += 1);
        }
        Ok(norm)
    }

    /// The kernels' `Scalars` of a parameter's next update.
    fn scalars_of(&self, slot: &Slot, learning_rate: f64) -> [f32; 4] {
        let update = self.config.update(slot.step + 1, slot.param.decay, learning_rate, 1.0);
        let taken = if slot.has_gradient { 1.0 } else { 0.0 };
        [taken, update.keep, update.bias_correction2_sqrt, update.negative_step_size]
    }

    fn launch(&mut self, max_grad_norm: f64) -> Result<()> {
        let (gpu, chunks) = (&self.gpu, &self.chunks);
        let count = i32::try_from(chunks.count).map_err(|_| Error::Internal("too many parameters".into()))?;
        let (begin, length, tensor) = (chunks.begin.ptr(), chunks.length.ptr(), chunks.tensor.ptr());
        let (scalars, gradients) = (self.scalars.ptr(), self.gradients.ptr());
        if chunks.count > 0 {
            let grid = Grid::new(chunks.count, THREADS)?;
            // SAFETY: the chunks lie within the arenas and name tensors that have scalars; there is a partial sum for each.
            unsafe {
                let partial = self.partial.ptr_mut();
                kernels::grad_norm_partial_f32(
                    gpu, grid, gradients, begin, length, tensor, scalars, partial,
                )?;
            }
        }
        let result = self.norm_and_clip.ptr_mut();
        // SAFETY: there are `count` partial sums, and two results.
        unsafe {
            kernels::grad_norm_finish_f32(
                gpu,
                Grid::new(1, THREADS)?,
                self.partial.ptr(),
                count,
                max_grad_norm,
                result,
            )?;
        }
        if chunks.count == 0 {
            return Ok(());
        }
        let grid = Grid::new(chunks.count, THREADS)?;
        let of_all = self.config.update(1, false, 0.0, 1.0);
        let (b1, b2, b2_rest) = (of_all.one_minus_beta1, of_all.beta2, of_all.one_minus_beta2);
        let [param, m, v] = [&mut self.master, &mut self.exp_avg, &mut self.exp_avg_sq].map(Buffer::ptr_mut);
        let norm = self.norm_and_clip.ptr();
        let epsilon = of_all.epsilon;
        // SAFETY: the chunks lie within the arenas, which all have the same length, and name tensors that have scalars.
        unsafe {
            match &mut self.copy {
                Some(copy) => {
                    let copy = copy.ptr_mut();
                    kernels::adamw_step_bf16(
                        gpu, grid, param, copy, m, v, gradients, begin, length, tensor, scalars, norm, b1,
                        b2, b2_rest, epsilon,
                    )
                }
                None => kernels::adamw_step_f32(
                    gpu, grid, param, m, v, gradients, begin, length, tensor, scalars, norm, b1, b2, b2_rest,
                    epsilon,
                ),
            }
        }
    }

    /// The state of parameter `index`, to be saved.
    ///
    /// # Errors
    /// [`Error::Internal`] without such a parameter; those of copying.
    pub fn state(&self, index: usize) -> Result<HostState> {
        let slot = self.at(index)?;
        let (begin, len) = (slot.begin, slot.param.len);
        Ok(HostState {
            name: slot.param.name.clone(),
            step: slot.step,
            exp_avg: self.exp_avg.download_at(begin, len)?,
            exp_avg_sq: self.exp_avg_sq.download_at(begin, len)?,
        })
    }

    /// The whole state as the CPU's optimiser has it.
    ///
    /// # Errors
    /// Those of copying.
    pub fn to_host(&self) -> Result<AdamW> {
        let slots = self.slots.iter().enumerate();
        let slots = slots.map(|(index, slot)| Ok((slot.param.clone(), self.state(index)?)));
        Ok(AdamW::of_states(self.config, slots.collect::<Result<_>>()?))
    }

    /// Puts back the saved state of one parameter.
    ///
    /// # Errors
    /// [`Error::Input`] if no parameter has this name or the lengths differ; those of copying.
    pub fn restore(&mut self, state: TensorState) -> Result<()> {
        let place = state.place_among(self.slots.iter().map(|slot| &slot.param))?;
        let slot = &mut self.slots[place];
        slot.step = state.step;
        self.exp_avg.write_at(slot.begin, state.exp_avg)?;
        self.exp_avg_sq.write_at(slot.begin, state.exp_avg_sq)
    }
}

impl Chunks {
    fn of(gpu: &Gpu, slots: &[Slot]) -> Result<Chunks> {
        let (mut begin, mut length, mut tensor) = (Vec::new(), Vec::new(), Vec::new());
        for (index, slot) in slots.iter().enumerate() {
            for start in (0..slot.param.len).step_by(CHUNK) {
                begin.push((slot.begin + start) as i64);
                length.push((slot.param.len - start).min(CHUNK) as i32);
                tensor.push(index as i32);
            }
        }
        Ok(Chunks {
            count: begin.len(),
            begin: gpu.upload(&begin, Purpose::Optimiser)?,
            length: gpu.upload(&length, Purpose::Optimiser)?,
            tensor: gpu.upload(&tensor, Purpose::Optimiser)?,
        })
    }
}
