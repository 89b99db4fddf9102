//! Central differences in f64 against an op's backward pass.

use super::{Op, ParamGrads, Tape, Var};
use crate::error::Result;
use crate::rng::{Purpose, Stream};
use crate::tensor::Tensor;

/// A tensor of standard normal f64 numbers; `id` picks the stream.
pub fn random(shape: &[usize], id: u64) -> Result<Tensor> {
    let mut s = Stream::new(2024, Purpose::Init, id);
    Tensor::new(shape, (0..shape.iter().product()).map(|_| f64::from(s.normal())).collect::<Vec<f64>>())
}

/// Largest error of the gradients of `sum(op(x) * r)`, r random, relative to `1 + |numerical|`.
///
/// `make` builds the op afresh, since running it consumes it. Inputs must be f64. The step is 1e-5, so the
/// truncation error of a well-scaled op stays below 1e-8.
pub fn gradcheck<const N: usize, O: Op<N>>(make: impl Fn() -> O, inputs: [&Tensor; N]) -> Result<f64> {
    const STEP: f64 = 1e-5;
    let (y, _) = make().forward(inputs)?;
    let r = random(y.shape(), 77)?;
    let weighted = |inputs: [&Tensor; N]| -> Result<f64> {
        let (y, _) = make().forward(inputs)?;
        Ok(y.real::<f64>().iter().zip(r.real::<f64>().iter()).map(|(a, b)| a * b).sum())
    };
    let tape = Tape::recording();
    let leaves = inputs.map(|x| tape.leaf(x.clone()));
    let vars: [&Var; N] = std::array::from_fn(|i| &leaves[i]);
    let out = tape.apply(make(), vars)?;
    let grads = tape.backward_from(&out, r.clone(), &mut ParamGrads::default())?;
    let mut worst: f64 = 0.0;
    for n in 0..N {
        let analytic = match grads.of(&leaves[n]) {
            Some(g) => g.clone(),
            None => Tensor::zeros(inputs[n].shape(), inputs[n].dtype()),
        };
        for e in 0..inputs[n].len() {
            let shifted = |by: f64| -> Result<f64> {
                let mut x = inputs[n].clone();
                x.make_mut::<f64>()?[e] += by;
                weighted(std::array::from_fn(|i| if i == n { &x } else { inputs[i] }))
            };
            let numeric = (shifted(STEP)? - shifted(-STEP)?) / (2.0 * STEP);
            let error = (analytic.real::<f64>()[e] - numeric).abs() / (1.0 + numeric.abs());
            worst = if error.is_nan() { f64::INFINITY } else { worst.max(error) };
        }
    }
    Ok(worst)
}
