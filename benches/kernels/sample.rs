//! Choosing tokens from logits.

use super::meter::{Meter, normal};
use criterion::Criterion;
use othink::cuda::Purpose;
use othink::rollout::sampler::cuda::{DeviceSampler, cost};
use othink::rollout::sampler::{DrawKey, Sampler, SamplingContext, SamplingParams};
use othink::tensor::{DType, Tensor};

/// A step of 64 sequences of Qwen2-VL-2B: TRL's plain sampling with image placeholders banned as in training, then what truncations
/// add, then greedy decoding. Rows are flat, as where a model is unsure: truncation looks at
/// many tokens.
pub fn tokens(meter: &Meter, criterion: &mut Criterion) {
    let (rows, vocab) = (meter.size(64, 4), meter.size(151_936, 1 << 14));
    let plain = SamplingParams::default();
    let all = [
        ("plain", plain.clone()),
        ("top-p 0.9", SamplingParams { top_p: 0.9, ..plain.clone() }),
        ("top-k 50", SamplingParams { top_k: 50, ..plain.clone() }),
        ("penalty", SamplingParams { repetition_penalty: 1.1, temperature: 0.7, ..plain.clone() }),
        ("greedy", SamplingParams { greedy: true, ..plain }),
    ];
    let logits =
        normal(&[rows, vocab], DType::F32, 1).real::<f32>().iter().map(|x| 3.0 * x).collect::<Vec<f32>>();
    let prompt: Vec<u32> = (0..300).collect();
    let banned: Vec<u32> = (vocab as u32 - 5..vocab as u32).collect();
    let keys: Vec<DrawKey> = (0..rows as u32)
        .map(|row| DrawKey { seed: 1, prompt: row / 8, completion: row % 8, position: 0 })
        .collect();
    let expected = |params: &SamplingParams, row: usize| {
        let context = SamplingContext { prompt: &prompt, banned: &banned, ..SamplingContext::default() };
        let logits = &logits[row * vocab..(row + 1) * vocab];
        Sampler::new().token(logits, &context, params, keys[row]).expect("finite logits")
    };
    for (name, params) in all {
        let shape = format!("{rows}x{vocab} {name}");
        let head = ["sample", "fwd", &shape];
        match meter.gpu() {
            Some(gpu) => {
                let on_gpu = Tensor::new(&[rows, vocab], logits.clone())
                    .and_then(|x| x.to_device(&meter.device, Purpose::Activations))
                    .expect("room for logits");
                let sequences: Vec<usize> = (0..rows).collect();
                let mut sampler = DeviceSampler::new(gpu, &params, &[], &banned, vocab, &[(&prompt, rows)])
                    .expect("room for a sampler");
                let drawn = sampler
                    .draw(&on_gpu, &sequences, &keys)
                    .and_then(|drawn| sampler.tokens(&drawn))
                    .expect("finite logits");
                let same = (0..rows.min(8)).filter(|&row| drawn[row] == expected(&params, row)).count();
                // A weight's last bit may differ from the host's, which now and then decides.
                assert!(same + 1 >= rows.min(8), "{name}: {same} of 8 tokens are the host's");
                let work = |()| sampler.draw(&on_gpu, &sequences, &keys).map(drop);
                meter.bench(criterion, head, cost(rows, vocab), || Ok(()), work);
            }
            None => {
                let work = |()| {
                    (0..rows).for_each(|row| _ = std::hint::black_box(expected(&params, row)));
                    Ok(())
                };
                meter.bench(criterion, head, cost(rows, vocab), || Ok(()), work);
            }
        }
    }
}
