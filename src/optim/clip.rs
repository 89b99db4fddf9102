//! The global gradient norm and clipping by it.

use rayon::prelude::*;

/// Elements whose squares one thread adds before partial sums are joined in order.
const CHUNK: usize = 16_384;

/// Independent running sums inside a chunk, so that the adder's latency is hidden.
const LANES: usize = 8;

/// The Euclidean norm of all gradients as one vector.
///
/// Squares are added in f64 within fixed chunks of each tensor, chunks in order within the
/// list: the result does not depend on the number of threads. The list's order is part of the
/// definition, so pass parameters in the same order every time.
pub fn global_grad_norm(grads: &[&[f32]]) -> f64 {
    let chunks: Vec<&[f32]> = grads.iter().flat_map(|grad| grad.chunks(CHUNK)).collect();
    let partial: Vec<f64> = chunks.into_par_iter().map(sum_of_squares).collect();
    partial.iter().sum::<f64>().sqrt()
}

/// The sum of squares of one chunk, in a fixed order.
fn sum_of_squares(values: &[f32]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let whole = values.chunks_exact(LANES);
    let rest = whole.remainder();
    for values in whole {
        for (lane, &x) in lanes.iter_mut().zip(values) {
            *lane += f64::from(x) * f64::from(x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(x) * f64::from(x);
    }
    lanes.iter().sum()
}

/// What gradients are multiplied by so that their norm does not exceed `max_norm` (option
/// `max_grad_norm`): `min(1, max_norm / (norm + 1e-6))`, as `torch.nn.utils.clip_grad_norm_`.
///
/// A `max_norm` of 0 (or below) switches clipping off, as in Hugging Face's trainer. A norm
/// that is NaN gives NaN: the caller stops the run before it reaches the weights.
pub fn clip_coefficient(norm: f64, max_norm: f64) -> f64 {
    if max_norm <= 0.0 {
        return 1.0;
    }
    let coefficient = max_norm / (norm + 1e-6);
    // Not `min`, which would turn NaN into 1.
    if coefficient > 1.0 { 1.0 } else { coefficient }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norm_by_hand_and_across_tensors() {
        assert_eq!(global_grad_norm(&[]), 0.0);
        assert_eq!(global_grad_norm(&[&[3.0], &[], &[0.0, -4.0]]), 5.0);
        // More than one chunk, a length that divides by nothing: sum of n ones.
        let ones = vec![1.0f32; 2 * CHUNK + 13];
        assert_eq!(global_grad_norm(&[&ones, &ones[..3]]), ((2 * CHUNK + 16) as f64).sqrt());
        // Squares that overflow f32 do not overflow the sum.
        assert!((global_grad_norm(&[&[3e30, 4e30]]) / 5e30 - 1.0).abs() < 1e-7);
        assert!(global_grad_norm(&[&[1.0], &[f32::NAN]]).is_nan());
    }

    #[test]
    fn norm_does_not_depend_on_threads() {
        let grad: Vec<f32> = (0..5 * CHUNK + 7).map(|i| (i as f32 * 0.37).sin()).collect();
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| global_grad_norm(&[&grad, &grad[..100]])).to_bits()
        };
        assert_eq!(on(1), on(3));
    }

    #[test]
    fn coefficient_by_hand() {
        assert_eq!(clip_coefficient(0.5, 1.0), 1.0);
        assert_eq!(clip_coefficient(0.0, 1.0), 1.0);
        assert_eq!(clip_coefficient(4.0, 1.0), 1.0 / 4.000_001);
        assert_eq!(clip_coefficient(4.0, 0.0), 1.0);
        assert!(clip_coefficient(f64::NAN, 1.0).is_nan());
        assert_eq!(clip_coefficient(f64::INFINITY, 1.0), 0.0);
    }
}
