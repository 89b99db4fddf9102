//! Reverse-mode differentiation over fused ops.
//!
//! A [`Tape`] is explicit, records or is off, and is consumed by [`Tape::backward`]. The same model code is
//! inference when the tape is off. Blocks run through [`Tape::recompute`] keep only their input and are run
//! again in the backward pass; that changes no bit of loss or gradient, because every op is a pure function.

pub mod gradcheck;

use crate::error::{Error, Result};
use crate::tensor::Tensor;
use std::cell::RefCell;
use std::collections::BTreeMap;

/// A differentiable operation: hyper-parameters plus a compulsory backward pass.
///
/// What has no gradient is a function, not an `Op`.
pub trait Op<const N: usize>: 'static {
    /// The op's name in errors.
    const NAME: &'static str;
    /// What the backward pass needs.
    type Saved: 'static;
    /// The result, and what has to be kept for the backward pass.
    fn forward(&self, inputs: [&Tensor; N]) -> Result<(Tensor, Self::Saved)>;
    /// Gradients for the inputs with `needs[i]`; the others may be `None`.
    fn backward(&self, saved: Self::Saved, dy: &Tensor, needs: [bool; N]) -> Result<[Option<Tensor>; N]>;
}

/// Index of a parameter in its `Params`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParamId(pub usize);

/// A value on (or beside) a tape.
#[derive(Clone, Debug)]
pub struct Var {
    value: Tensor,
    node: Option<usize>,
}

impl Var {
    /// A value that no gradient flows to.
    pub fn constant(value: Tensor) -> Var {
        Var { value, node: None }
    }

    /// The tensor.
    pub fn value(&self) -> &Tensor {
        &self.value
    }
}

/// Gradients of the trainable parameters.
#[derive(Debug, Default)]
pub struct ParamGrads {
    grads: BTreeMap<ParamId, Tensor>,
}

impl ParamGrads {
    /// The gradient of one parameter; `None` when it took no part.
    pub fn of(&self, id: ParamId) -> Option<&Tensor> {
        self.grads.get(&id)
    }

    /// Adds to the gradient of one parameter.
    pub fn add(&mut self, id: ParamId, grad: Tensor) -> Result<()> {
        match self.grads.get_mut(&id) {
            Some(sum) => sum.accumulate(&grad),
            None => {
                self.grads.insert(id, grad);
                Ok(())
            }
        }
    }

    /// Adds the gradients of another micro-batch.
    pub fn merge(&mut self, other: ParamGrads) -> Result<()> {
        other.grads.into_iter().try_for_each(|(id, grad)| self.add(id, grad))
    }

    /// All gradients in the order of the parameters.
    pub fn iter(&self) -> impl Iterator<Item = (ParamId, &Tensor)> {
        self.grads.iter().map(|(id, grad)| (*id, grad))
    }
}

/// What a backward pass gives: gradients of parameters and of the tape's other leaves.
#[derive(Debug)]
pub struct Grads {
    /// Gradients of the parameters.
    pub params: ParamGrads,
    leaves: BTreeMap<usize, Tensor>,
}

impl Grads {
    /// The gradient of a leaf made by [`Tape::leaf`].
    pub fn of(&self, leaf: &Var) -> Option<&Tensor> {
        leaf.node.and_then(|id| self.leaves.get(&id))
    }
}

type Backward = Box<dyn FnOnce(&Tensor, &mut ParamGrads) -> Result<Vec<Option<Tensor>>>>;

enum Node {
    Leaf,
    Param(ParamId),
    Op { inputs: Vec<Option<usize>>, backward: Backward },
}

/// The record of a computation.
pub struct Tape {
    recording: bool,
    nodes: RefCell<Vec<Node>>,
    params: RefCell<BTreeMap<ParamId, Var>>,
}

impl Tape {
    /// A tape that records.
    pub fn recording() -> Tape {
        Tape { recording: true, nodes: RefCell::default(), params: RefCell::default() }
    }

    /// A tape that records nothing: inference.
    pub fn off() -> Tape {
        Tape { recording: false, nodes: RefCell::default(), params: RefCell::default() }
    }

    fn push(&self, node: Node) -> usize {
        let mut nodes = self.nodes.borrow_mut();
        nodes.push(node);
        nodes.len() - 1
    }

    /// A value whose gradient can be asked for afterwards.
    pub fn leaf(&self, value: Tensor) -> Var {
        let node = self.recording.then(|| self.push(Node::Leaf));
        Var { value, node }
    }

    /// A parameter; one leaf per id, however often it is used.
    pub fn param(&self, id: ParamId, value: &Tensor, trainable: bool) -> Var {
        if !self.recording || !trainable {
            return Var::constant(value.clone());
        }
        if let Some(var) = self.params.borrow().get(&id) {
            return var.clone();
        }
        let var = Var { value: value.clone(), node: Some(self.push(Node::Param(id))) };
        self.params.borrow_mut().insert(id, var.clone());
        var
    }

    /// Runs an op and records it when some input needs a gradient.
    pub fn apply<const N: usize, O: Op<N>>(&self, op: O, inputs: [&Var; N]) -> Result<Var> {
        let (value, saved) = op.forward(inputs.map(|v| &v.value))?;
        if inputs.iter().all(|v| v.node.is_none()) {
            return Ok(Var::constant(value));
        }
        let ids = inputs.map(|v| v.node);
        let backward: Backward =
            Box::new(move |dy, _| Ok(op.backward(saved, dy, ids.map(|id| id.is_some()))?.into()));
        let node = self.push(Node::Op { inputs: ids.to_vec(), backward });
        Ok(Var { value, node: Some(node) })
    }

    /// The same elements under another shape.
    pub fn reshape(&self, x: &Var, shape: &[usize]) -> Result<Var> {
        self.apply(Reshape { shape: shape.to_vec() }, [x])
    }

    /// Runs `block` without keeping its inside; the backward pass runs it again on a tape of its own.
    ///
    /// A parameter must be used inside at most one block for gradients to be the same bits as without
    /// recomputation (sums of more than two terms would be formed in another order).
    pub fn recompute(&self, x: &Var, block: impl Fn(&Tape, &Var) -> Result<Var> + 'static) -> Result<Var> {
        if !self.recording {
            return block(self, x);
        }
        let value = block(&Tape::off(), &Var::constant(x.value.clone()))?.value;
        let (input, needs) = (x.value.clone(), x.node.is_some());
        let backward: Backward = Box::new(move |dy, params| {
            let inner = Tape::recording();
            let leaf = if needs { inner.leaf(input) } else { Var::constant(input) };
            let out = block(&inner, &leaf)?;
            let mut grads = inner.backward_from(&out, dy.clone())?;
            params.merge(std::mem::take(&mut grads.params))?;
            Ok(vec![leaf.node.and_then(|id| grads.leaves.remove(&id))])
        });
        let node = self.push(Node::Op { inputs: vec![x.node], backward });
        Ok(Var { value, node: Some(node) })
    }

    /// Gradients of a one-element loss.
    pub fn backward(self, loss: &Var) -> Result<Grads> {
        if loss.value.len() != 1 {
            return Err(Error::Internal(format!("backward of a loss of shape {:?}", loss.value.shape())));
        }
        let one = Tensor::scalar(1.0_f32).to_dtype(loss.value.dtype());
        self.backward_from(loss, one)
    }

    /// Gradients of `sum(y * dy)`.
    pub fn backward_from(self, y: &Var, dy: Tensor) -> Result<Grads> {
        let nodes = self.nodes.into_inner();
        let mut pending: Vec<Option<Tensor>> = nodes.iter().map(|_| None).collect();
        let mut grads = Grads { params: ParamGrads::default(), leaves: BTreeMap::new() };
        if let Some(id) = y.node {
            pending[id] = Some(dy);
        }
        for (id, node) in nodes.into_iter().enumerate().rev() {
            let Some(dy) = pending[id].take() else { continue };
            match node {
                Node::Leaf => {
                    grads.leaves.insert(id, dy);
                }
                Node::Param(param) => grads.params.add(param, dy)?,
                Node::Op { inputs, backward } => {
                    let dxs = backward(&dy, &mut grads.params)?;
                    for (input, dx) in inputs.into_iter().zip(dxs) {
                        let (Some(input), Some(dx)) = (input, dx) else { continue };
                        match &mut pending[input] {
                            Some(sum) => sum.accumulate(&dx)?,
                            slot => *slot = Some(dx),
                        }
                    }
                }
            }
        }
        Ok(grads)
    }
}

/// A view of the same elements; the gradient is viewed back.
struct Reshape {
    shape: Vec<usize>,
}

impl Op<1> for Reshape {
    const NAME: &'static str = "reshape";
    type Saved = Vec<usize>;

    fn forward(&self, [x]: [&Tensor; 1]) -> Result<(Tensor, Vec<usize>)> {
        Ok((x.reshape(&self.shape)?, x.shape().to_vec()))
    }

    fn backward(&self, shape: Vec<usize>, dy: &Tensor, _: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        Ok([Some(dy.reshape(&shape)?)])
    }
}
