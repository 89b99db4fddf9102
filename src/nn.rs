//! Parameters and the layers made of them.
//!
//! The weights live in one [`Params`], the architecture in small structs of [`ParamId`]s. So one architecture runs
//! with several sets of weights (policy, reference), and tensors that two sets share are stored once.

use crate::autograd::{ParamId, Tape, Var};
use crate::cuda::Purpose;
use crate::error::{Error, Result};
use crate::ops::linear::{Linear as LinearOp, LinearBias};
use crate::ops::norm;
use crate::tensor::{DType, Device, Placement, Tensor};
use std::collections::HashMap;
use std::sync::Arc;

/// A named tensor.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Published Hugging Face name.
    pub name: String,
    /// The weights.
    pub value: Tensor,
    /// Whether gradients are computed for it.
    pub trainable: bool,
}

/// All weights of a model, in the order of the checkpoint's parameter list.
#[derive(Clone, Debug, Default)]
pub struct Params {
    list: Vec<Parameter>,
}

impl Params {
    /// Wraps a list of parameters, all trainable.
    pub fn new(weights: impl IntoIterator<Item = (String, Tensor)>) -> Params {
        let list =
            weights.into_iter().map(|(name, value)| Parameter { name, value, trainable: true }).collect();
        Params { list }
    }

    /// Number of parameters (tensors).
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// One parameter. Panics on an id of another model, which is a bug.
    pub fn of(&self, id: ParamId) -> &Parameter {
        &self.list[id.0]
    }

    /// All parameters with their ids.
    pub fn iter(&self) -> impl Iterator<Item = (ParamId, &Parameter)> {
        self.list.iter().enumerate().map(|(i, p)| (ParamId(i), p))
    }

    /// One parameter for the optimiser to write. Panics on an id of another model, which is a bug.
    pub fn of_mut(&mut self, id: ParamId) -> &mut Parameter {
        &mut self.list[id.0]
    }

    /// All parameters for the optimiser to write.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (ParamId, &mut Parameter)> {
        self.list.iter_mut().enumerate().map(|(i, p)| (ParamId(i), p))
    }

    /// These weights as they are now, whatever training makes of them: what the optimiser writes in place is copied on its GPU, the rest
    /// is shared.
    ///
    /// # Errors
    /// Those of allocating and copying device memory.
    pub fn detached(&self) -> Result<Params> {
        let detach = |p: &Parameter| Ok(Parameter { value: p.value.detached()?, ..p.clone() });
        Ok(Params { list: self.list.iter().map(detach).collect::<Result<_>>()? })
    }

    /// The same weights in another storage type, in host memory.
    pub fn to_dtype(&self, dtype: DType) -> Params {
        let convert = |p: &Parameter| Parameter { value: p.value.to_dtype(dtype), ..p.clone() };
        Params { list: self.list.iter().map(convert).collect() }
    }

    /// The same weights where and as `placement` says.
    ///
    /// # Errors
    /// Those of device memory.
    pub fn placed(&self, placement: &Placement) -> Result<Params> {
        let place = |p: &Parameter| {
            let value = p.value.to_dtype(placement.dtype).to_device(&placement.device, Purpose::Weights)?;
            Ok(Parameter { value, ..p.clone() })
        };
        Ok(Params { list: self.list.iter().map(place).collect::<Result<_>>()? })
    }

    /// Where the weights are. A model without any is on the CPU.
    pub fn device(&self) -> Device {
        self.list.first().map_or(Device::Cpu, |p| p.value.device())
    }

    /// Freezes every parameter whose name starts with `prefix`.
    pub fn freeze(&mut self, prefix: &str) {
        self.list.iter_mut().filter(|p| p.name.starts_with(prefix)).for_each(|p| p.trainable = false);
    }

    /// Whether some parameter whose name starts with `prefix` is trained.
    pub fn trains(&self, prefix: &str) -> bool {
        self.list.iter().any(|p| p.trainable && p.name.starts_with(prefix))
    }

    /// Elements of all parameters, and of the trainable ones.
    pub fn count(&self) -> (usize, usize) {
        let count = |trainable_only: bool| {
            self.list.iter().filter(|p| p.trainable || !trainable_only).map(|p| p.value.len()).sum()
        };
        (count(false), count(true))
    }
}

/// Finds parameters by name while a model is put together.
pub struct Names(HashMap<String, ParamId>);

impl Names {
    /// An index of the names in a list.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Names {
        Names(names.into_iter().enumerate().map(|(i, n)| (n.to_string(), ParamId(i))).collect())
    }

    /// The id of a name.
    pub fn id(&self, name: &str) -> Result<ParamId> {
        self.0.get(name).copied().ok_or_else(|| Error::Internal(format!("the parameter list lacks {name}")))
    }
}

/// Weights on a tape: what a forward pass needs beside its input.
#[derive(Clone)]
pub struct Scope<'a> {
    /// Where ops are recorded.
    pub tape: &'a Tape,
    /// The weights.
    pub params: &'a Arc<Params>,
}

impl Scope<'_> {
    /// A parameter on the tape.
    pub fn param(&self, id: ParamId) -> Var {
        let p = self.params.of(id);
        self.tape.param(id, &p.value, p.trainable)
    }
}

/// `x W^T (+ b)`; W `[O, I]`.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: ParamId,
    bias: Option<ParamId>,
}

impl Linear {
    /// The layer `name.weight` (and `name.bias`).
    pub fn new(names: &Names, name: &str, bias: bool) -> Result<Linear> {
        let bias = if bias { Some(names.id(&format!("{name}.bias"))?) } else { None };
        Ok(Linear { weight: names.id(&format!("{name}.weight"))?, bias })
    }

    /// `[T, I]` to `[T, O]`.
    pub fn forward(&self, scope: &Scope<'_>, x: &Var) -> Result<Var> {
        let w = scope.param(self.weight);
        match self.bias {
            Some(b) => scope.tape.apply(LinearBias, [x, &w, &scope.param(b)]),
            None => scope.tape.apply(LinearOp, [x, &w]),
        }
    }
}

/// RMSNorm over the last dimension.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    weight: ParamId,
    eps: f64,
}

impl RmsNorm {
    /// The norm `name.weight`.
    pub fn new(names: &Names, name: &str, eps: f64) -> Result<RmsNorm> {
        Ok(RmsNorm { weight: names.id(&format!("{name}.weight"))?, eps })
    }

    /// `[T, C]` to `[T, C]`.
    pub fn forward(&self, scope: &Scope<'_>, x: &Var) -> Result<Var> {
        scope.tape.apply(norm::RmsNorm { eps: self.eps }, [x, &scope.param(self.weight)])
    }
}

/// The norm that a model has at a place.
#[derive(Clone, Debug)]
pub enum Norm {
    /// RMSNorm.
    Rms(RmsNorm),
    /// LayerNorm.
    Layer(LayerNorm),
}

impl Norm {
    /// `[T, C]` to `[T, C]`.
    pub fn forward(&self, scope: &Scope<'_>, x: &Var) -> Result<Var> {
        match self {
            Norm::Rms(norm) => norm.forward(scope, x),
            Norm::Layer(norm) => norm.forward(scope, x),
        }
    }
}

/// LayerNorm over the last dimension.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    weight: ParamId,
    bias: ParamId,
    eps: f64,
}

impl LayerNorm {
    /// The norm `name.weight`, `name.bias`.
    pub fn new(names: &Names, name: &str, eps: f64) -> Result<LayerNorm> {
        Ok(LayerNorm {
            weight: names.id(&format!("{name}.weight"))?,
            bias: names.id(&format!("{name}.bias"))?,
            eps,
        })
    }

    /// `[T, C]` to `[T, C]`.
    pub fn forward(&self, scope: &Scope<'_>, x: &Var) -> Result<Var> {
        scope
            .tape
            .apply(norm::LayerNorm { eps: self.eps }, [x, &scope.param(self.weight), &scope.param(self.bias)])
    }
}
