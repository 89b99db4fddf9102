//! Reverse-mode differentiation over fused ops.
//!
//! A [`Tape`] is explicit, records or is off, and is consumed by [`Tape::backward_from`]. The same model code is
//! inference when the tape is off. Blocks run through [`Tape::recompute`] keep only their input and are run
//! again in the backward pass; that changes no bit of loss or gradient, because every op is a pure function.
//!
//! Gradients of parameters go to a [`GradSink`] as soon as they exist, so that a sink which adds them up elsewhere lets the
//! backward pass hold one of them at a time.

pub mod gradcheck;

use crate::error::Result;
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

/// Where a backward pass puts the gradients of parameters.
pub trait GradSink {
    /// Adds to the gradient of one parameter. A parameter that several ops use comes once for each, the last op first.
    ///
    /// # Errors
    /// [`Error::Internal`](crate::error::Error::Internal) for a gradient that does not fit what is there; those of device memory.
    fn add(&mut self, id: ParamId, grad: Tensor) -> Result<()>;
}

/// Gradients of the trainable parameters, kept as they come and in their type.
#[derive(Debug, Default)]
pub struct ParamGrads {
    grads: BTreeMap<ParamId, Tensor>,
}

impl ParamGrads {
    /// The gradient of one parameter; `None` when it took no part.
    pub fn of(&self, id: ParamId) -> Option<&Tensor> {
        self.grads.get(&id)
    }

    /// Adds all gradients to those of another sink, in the order of the parameters.
    ///
    /// # Errors
    /// Those of [`GradSink::add`].
    pub fn add_to(self, sink: &mut dyn GradSink) -> Result<()> {
        self.grads.into_iter().try_for_each(|(id, grad)| sink.add(id, grad))
    }

    /// All gradients in the order of the parameters.
    pub fn iter(&self) -> impl Iterator<Item = (ParamId, &Tensor)> {
        self.grads.iter().map(|(id, grad)| (*id, grad))
    }
}

impl GradSink for ParamGrads {
    fn add(&mut self, id: ParamId, grad: Tensor) -> Result<()> {
        match self.grads.get_mut(&id) {
            Some(sum) => sum.accumulate(&grad),
            None => {
                self.grads.insert(id, grad);
                Ok(())
            }
        }
    }
}

/// Gradients of the tape's leaves, as a backward pass gives them.
#[derive(Debug)]
pub struct Grads {
    leaves: BTreeMap<usize, Tensor>,
}

impl Grads {
    /// The gradient of a leaf made by [`Tape::leaf`].
    pub fn of(&self, leaf: &Var) -> Option<&Tensor> {
        leaf.node.and_then(|id| self.leaves.get(&id))
    }
}

type Backward = Box<dyn FnOnce(&Tensor, &mut dyn GradSink) -> Result<Vec<Option<Tensor>>>>;

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

    /// Runs `block` without keeping its inside; the backward pass runs it again on a tape of its own, and gives the sink the same
    /// gradients in the same order as without recomputation.
    pub fn recompute(&self, x: &Var, block: impl Fn(&Tape, &Var) -> Result<Var> + 'static) -> Result<Var> {
        if !self.recording {
            return block(self, x);
        }
        let value = block(&Tape::off(), &Var::constant(x.value.clone()))?.value;
        let (input, needs) = (x.value.clone(), x.node.is_some());
        let backward: Backward = Box::new(move |dy, sink| {
            let inner = Tape::recording();
            let leaf = if needs { inner.leaf(input) } else { Var::constant(input) };
            let out = block(&inner, &leaf)?;
            let mut grads = inner.backward_from(&out, dy.clone(), sink)?;
            Ok(vec![leaf.node.and_then(|id| grads.leaves.remove(&id))])
        });
        let node = self.push(Node::Op { inputs: vec![x.node], backward });
        Ok(Var { value, node: Some(node) })
    }

    /// Gradients of `sum(y * dy)`: those of parameters are added to `sink`, in the reverse order of the ops that they come from.
    ///
    /// # Errors
    /// Those of the ops and of the sink, which then has got a part of the gradients.
    pub fn backward_from(self, y: &Var, dy: Tensor, sink: &mut dyn GradSink) -> Result<Grads> {
        let mut nodes = self.nodes.into_inner();
        let mut pending: Vec<Option<Tensor>> = nodes.iter().map(|_| None).collect();
        let mut grads = Grads { leaves: BTreeMap::new() };
        if let Some(id) = y.node {
            pending[id] = Some(dy);
        }
        while let Some(node) = nodes.pop() {
            let id = nodes.len();
            let Some(dy) = pending[id].take() else { continue };
            match node {
                Node::Leaf => {
                    grads.leaves.insert(id, dy);
                }
                Node::Param(param) => sink.add(param, dy)?,
                Node::Op { inputs, backward } => {
                    let dxs = backward(&dy, sink)?;
                    for (input, dx) in inputs.into_iter().zip(dxs) {
                        let (Some(input), Some(dx)) = (input, dx) else { continue };
                        match (&nodes[input], &mut pending[input]) {
                            (Node::Param(param), _) => sink.add(*param, dx)?,
                            (_, Some(sum)) => sum.accumulate(&dx)?,
                            (_, slot) => *slot = Some(dx),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// `x * w`, element by element.
    struct Times;

    impl Op<2> for Times {
        const NAME: &'static str = "times";
        type Saved = [Tensor; 2];

        fn forward(&self, [x, w]: [&Tensor; 2]) -> Result<(Tensor, [Tensor; 2])> {
            Ok((times(x, w)?, [x.clone(), w.clone()]))
        }

        fn backward(
            &self,
            [x, w]: [Tensor; 2],
            dy: &Tensor,
            needs: [bool; 2],
        ) -> Result<[Option<Tensor>; 2]> {
            let of = |needed: bool, other: &Tensor| needed.then(|| times(dy, other)).transpose();
            Ok([of(needs[0], &w)?, of(needs[1], &x)?])
        }
    }

    fn times(x: &Tensor, y: &Tensor) -> Result<Tensor> {
        let products: Vec<f64> =
            x.real::<f64>().iter().zip(y.real::<f64>().iter()).map(|(x, y)| x * y).collect();
        Tensor::new(x.shape(), products)
    }

    /// Keeps what it is given apart.
    struct Log(Vec<(usize, f64)>);

    impl GradSink for Log {
        fn add(&mut self, id: ParamId, grad: Tensor) -> Result<()> {
            self.0.push((id.0, grad.real::<f64>()[0]));
            Ok(())
        }
    }

    /// `y = x w (w v) w`, the bracket in a block of its own; gives `dy/dx`.
    fn run(recompute: bool, sink: &mut dyn GradSink) -> Result<f64> {
        let scalar = |x: f64| Tensor::new(&[1], vec![x]);
        let [x, w, v] = [scalar(2.0)?, scalar(3.0)?, scalar(5.0)?];
        let tape = Tape::recording();
        let leaf = tape.leaf(x);
        let w_of = {
            let w = w.clone();
            move |tape: &Tape| tape.param(ParamId(0), &w, true)
        };
        let first = tape.apply(Times, [&leaf, &w_of(&tape)])?;
        let block = {
            let w_of = w_of.clone();
            move |tape: &Tape, x: &Var| {
                let inner = tape.apply(Times, [x, &w_of(tape)])?;
                tape.apply(Times, [&inner, &tape.param(ParamId(1), &v, true)])
            }
        };
        let middle = if recompute { tape.recompute(&first, block)? } else { block(&tape, &first)? };
        let y = tape.apply(Times, [&middle, &w_of(&tape)])?;
        assert_eq!(y.value().real::<f64>()[0], 2.0 * 27.0 * 5.0);
        let grads = tape.backward_from(&y, scalar(1.0)?, sink)?;
        Ok(grads.of(&leaf).map_or(f64::NAN, |d| d.real::<f64>()[0]))
    }

    #[test]
    fn each_use_of_a_parameter_gives_its_part_the_last_one_first() -> Result<()> {
        for recompute in [false, true] {
            let mut log = Log(Vec::new());
            assert_eq!(run(recompute, &mut log)?, 135.0);
            assert_eq!(log.0, [(0, 90.0), (1, 54.0), (0, 90.0), (0, 90.0)], "recomputed: {recompute}");
            let (mut grads, mut log) = (ParamGrads::default(), Log(Vec::new()));
            run(recompute, &mut grads)?;
            grads.add_to(&mut log)?;
            assert_eq!(log.0, [(0, 270.0), (1, 54.0)], "recomputed: {recompute}");
        }
        Ok(())
    }

    #[test]
    fn a_parameter_is_its_own_gradient() -> Result<()> {
        let (tape, mut log) = (Tape::recording(), Log(Vec::new()));
        let w = tape.param(ParamId(4), &Tensor::new(&[1], vec![3.0_f64])?, true);
        tape.backward_from(&w, Tensor::new(&[1], vec![7.0_f64])?, &mut log)?;
        assert_eq!(log.0, [(4, 7.0)]);
        Ok(())
    }
}
