//! Every op, forward and backward, as `<op>/<fwd|bwd>`: on a GPU in bf16 at the shapes of Qwen2-VL-2B, on the CPU in f32 at small ones.
//!
//! Each op is held against the CPU's in f64 on a few rows before it is timed (the optimiser, the advantages and the loss against the CPU's
//! own: their bits are those of the tests). The times of `embedding`, `patch_embed` and `log_softmax` hold what these ops do on the host
//! (sorting tokens, uploading tables and bytes), those of `adamw` the reading of the norm, those of `grpo_loss`
//! and `supervised_loss` the reading of their sums.
//! On a GPU, time is what passes between two events in the stream, with the L2 cache overwritten before each run. The floor of an op is
//! the time that its own count of operations and bytes takes at the rates of a large matrix product and a large copy, measured at the
//! start of the same run. Lines that begin with `BENCH` say all of it; criterion's own statistics stand beside them.

mod attention;
mod head;
mod meter;
mod ops;
mod optimiser;
mod sample;

use criterion::Criterion;
use meter::Meter;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let meter = Meter::new();
    println!("BENCH {meter}");
    ops::linear(&meter, &mut criterion);
    ops::patch_embed(&meter, &mut criterion);
    ops::norms(&meter, &mut criterion);
    ops::rope(&meter, &mut criterion);
    attention::packed(&meter, &mut criterion);
    attention::decode(&meter, &mut criterion);
    ops::activations(&meter, &mut criterion);
    ops::embedding(&meter, &mut criterion);
    ops::elementwise(&meter, &mut criterion);
    head::log_softmax_kl(&meter, &mut criterion);
    head::sampled(&meter, &mut criterion);
    head::grpo_loss(&meter, &mut criterion);
    head::supervised(&meter, &mut criterion);
    sample::tokens(&meter, &mut criterion);
    optimiser::adamw(&meter, &mut criterion);
    optimiser::group_advantage(&meter, &mut criterion);
    criterion.final_summary();
}
