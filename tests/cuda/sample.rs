//! Sampling against `othink::rollout::sampler`, token for token.

use crate::harness::{gpu, is_checked};
use othink::cuda::kernels::{Grid, conformance};
use othink::cuda::{Gpu, Purpose};
use othink::error::{Error, Result};
use othink::rng::{Purpose as StreamPurpose, Stream, philox};
use othink::rollout::sampler::cuda::DeviceSampler;
use othink::rollout::sampler::{DrawKey, Sampler, SamplingContext, SamplingParams};
use othink::tensor::{Device, Tensor};
use serde::Deserialize;

const MINUS: f32 = f32::NEG_INFINITY;

/// A row with what came before it.
#[derive(Clone)]
struct Row {
    logits: Vec<f32>,
    prompt: Vec<u32>,
    output: Vec<u32>,
    key: DrawKey,
}

/// What all rows have in common.
#[derive(Clone, Debug, Default)]
struct Options {
    params: SamplingParams,
    eos: Vec<u32>,
    banned: Vec<u32>,
}

impl Options {
    /// The host's token.
    fn on_cpu(&self, row: &Row) -> Result<u32> {
        let context = SamplingContext {
            prompt: &row.prompt,
            output: &row.output,
            eos: &self.eos,
            banned: &self.banned,
        };
        Sampler::new().token(&row.logits, &context, &self.params, row.key)
    }

    /// A sampler for a sequence of each row, which has seen all of the row's history.
    fn sampler(&self, gpu: &Gpu, rows: &[Row]) -> Result<DeviceSampler> {
        let histories: Vec<Vec<u32>> =
            rows.iter().map(|row| [&row.prompt[..], &row.output].concat()).collect();
        let prompts: Vec<(&[u32], usize)> = histories.iter().map(|history| (&history[..], 1)).collect();
        let vocab = rows.first().map_or(0, |row| row.logits.len());
        DeviceSampler::new(gpu, &self.params, &self.eos, &self.banned, vocab, &prompts)
    }

    /// The device's codes, all rows in one batch.
    fn on_gpu(&self, gpu: &Gpu, rows: &[Row]) -> Result<Vec<i32>> {
        let keys: Vec<DrawKey> = rows.iter().map(|row| row.key).collect();
        let sequences: Vec<usize> = (0..rows.len()).collect();
        self.sampler(gpu, rows)?.draw(&logits_on(gpu, rows)?, &sequences, &keys)?.download()
    }

    /// Every row's token, or that there is none.
    fn check(&self, gpu: &Gpu, rows: &[Row]) -> Result<()> {
        for (i, (got, row)) in self.on_gpu(gpu, rows)?.iter().zip(rows).enumerate() {
            let want = self.on_cpu(row).map_or(-1, |token| token as i32);
            let shown = &row.logits[..row.logits.len().min(20)];
            assert!(
                *got == want || (*got < 0 && want < 0),
                "{got} instead of {want}, row {i}, {self:?}, {shown:?}"
            );
        }
        Ok(())
    }
}

fn logits_on(gpu: &Gpu, rows: &[Row]) -> Result<Tensor> {
    let vocab = rows.first().map_or(0, |row| row.logits.len());
    let logits = rows.iter().flat_map(|row| row.logits.iter().copied()).collect::<Vec<f32>>();
    Tensor::new(&[rows.len(), vocab], logits)?.to_device(&Device::Cuda(gpu.clone()), Purpose::Inputs)
}

fn stream(id: u64) -> Stream {
    Stream::new(41, StreamPurpose::Task, id)
}

fn pick<T: Copy>(stream: &mut Stream, of: &[T]) -> T {
    of[stream.below(of.len() as u32) as usize]
}

/// Rows of all kinds: wide and flat, with few and many ties, with few candidates, with weights that vanish, and near f32's limits.
fn random_logits(stream: &mut Stream, vocab: usize) -> Vec<f32> {
    let kind = stream.below(10);
    let one = stream.below(vocab as u32) as usize;
    let logit = |i: usize, x: f32, u: f32| match kind {
        0 => x,
        1 => 4.0 * x,
        2 => 0.01 * x,
        3 => (2.0 * x).round() * 0.5,
        4 => x.signum(),
        5 => -0.0 * x,
        6 if u < 0.9 && i != one => MINUS,
        7 if i != one => MINUS,
        8 => 60.0 * x,
        9 => 1e38 * x.clamp(-3.0, 3.0),
        _ => x,
    };
    (0..vocab).map(|i| logit(i, stream.normal(), stream.unit())).collect()
}

fn random_options(stream: &mut Stream, vocab: usize) -> Options {
    let ids = |stream: &mut Stream| {
        (0..pick(stream, &[0, 0, 1, 3])).map(|_| stream.below(vocab as u32 + 2)).collect()
    };
    let params = SamplingParams {
        temperature: pick(stream, &[1.0, 1.0, 0.7, 3.0, 1e-30, 1e5]),
        top_p: pick(stream, &[1.0, 1.0, 0.95, 0.5, 1.0 / 3.0, 0.999_999, 1e-9]),
        top_k: pick(stream, &[0, 0, 1, 2, 40, vocab / 2, vocab, vocab + 5]),
        min_p: pick(stream, &[0.0, 0.0, 0.05, 0.5, 1.0]),
        repetition_penalty: pick(stream, &[1.0, 1.0, 1.3, 0.5, 1e30]),
        min_new_tokens: pick(stream, &[0, 0, 3]),
        max_new_tokens: 64,
        greedy: stream.below(6) == 0,
    };
    Options { params, eos: ids(stream), banned: ids(stream) }
}

fn random_row(stream: &mut Stream, vocab: usize) -> Row {
    let logits = random_logits(stream, vocab);
    let tokens = |stream: &mut Stream, most: u32| {
        (0..stream.below(most + 1)).map(|_| stream.below(vocab as u32 + 1)).collect::<Vec<u32>>()
    };
    let (prompt, output) = (tokens(stream, 9), tokens(stream, 5));
    let key = DrawKey {
        seed: u64::from(stream.next_u32()) << 32 | u64::from(stream.next_u32()),
        prompt: stream.next_u32(),
        completion: stream.below(16),
        position: output.len() as u32,
    };
    Row { logits, prompt, output, key }
}

/// All options and their combinations, at vocabularies of single tokens, of one more than a word's, a pack's, a warp's and a block's.
#[test]
fn tokens_are_the_cpus() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let sizes = [(1, 10), (2, 10), (3, 20), (17, 60), (33, 40), (129, 40), (257, 60), (2049, 30), (4099, 20)];
    for (vocab, cases) in sizes {
        for case in 0..if is_checked() { 3 } else { cases } {
            let mut stream = stream((vocab * 1000 + case) as u64);
            let options = random_options(&mut stream, vocab);
            let rows: Vec<Row> = (0..13).map(|_| random_row(&mut stream, vocab)).collect();
            options.check(gpu, &rows)?;
        }
    }
    Ok(())
}

/// Qwen2-VL's vocabulary: three halvings down to a token.
#[test]
fn a_whole_vocabulary() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let (mut stream, vocab) = (stream(1), 151_936);
    let plain = SamplingParams::default();
    let truncated = SamplingParams { temperature: 0.9, top_k: 5000, top_p: 0.8, ..plain.clone() };
    let nucleus = SamplingParams { top_p: 0.9, repetition_penalty: 1.1, ..plain.clone() };
    for params in [plain, truncated, nucleus] {
        let options = Options { params, banned: vec![151_655, 151_935], ..Options::default() };
        let rows: Vec<Row> = (0..3).map(|_| random_row(&mut stream, vocab)).collect();
        options.check(gpu, &rows)?;
        if is_checked() {
            break;
        }
    }
    Ok(())
}

/// One case of `tools/reference/make_sampler_golden.py`, as in the host's tests.
#[derive(Deserialize)]
struct Golden {
    /// `null` is -inf.
    logits: Vec<Option<f32>>,
    prompt: Vec<u32>,
    output: Vec<u32>,
    eos: Vec<u32>,
    banned: Vec<u32>,
    do_sample: bool,
    temperature: f64,
    top_k: usize,
    top_p: f64,
    min_p: f64,
    repetition_penalty: f64,
    min_new_tokens: usize,
    kept: Vec<u32>,
    argmax: u32,
}

/// What transformers keeps is drawn and nothing else; of few tokens kept, each.
#[test]
fn the_support_is_that_of_transformers() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let cases: Vec<Golden> =
        serde_json::from_str(include_str!("../golden/sampler.json")).expect("golden file");
    assert_eq!(cases.len(), 64);
    for (number, case) in cases.into_iter().enumerate() {
        let params = SamplingParams {
            temperature: case.temperature,
            top_p: case.top_p,
            top_k: case.top_k,
            min_p: case.min_p,
            repetition_penalty: case.repetition_penalty,
            min_new_tokens: case.min_new_tokens,
            max_new_tokens: 64,
            greedy: !case.do_sample,
        };
        let options = Options { params, eos: case.eos, banned: case.banned };
        let row = Row {
            logits: case.logits.iter().map(|x| x.unwrap_or(MINUS)).collect(),
            prompt: case.prompt,
            key: DrawKey { seed: 9, prompt: 0, completion: 0, position: case.output.len() as u32 },
            output: case.output,
        };
        let draws = if is_checked() || !case.do_sample { 2 } else { 40 };
        let rows: Vec<Row> =
            (0..draws).map(|prompt| Row { key: DrawKey { prompt, ..row.key }, ..row.clone() }).collect();
        options.check(gpu, &rows)?;
        for token in options.on_gpu(gpu, &rows)? {
            if case.do_sample {
                assert!(case.kept.contains(&(token as u32)), "case {number}: {token} is outside the support");
            } else {
                assert_eq!(token as u32, case.argmax, "case {number}");
            }
        }
    }
    Ok(())
}

/// A row has the same token alone, and in a batch at another place beside other rows.
#[test]
fn rows_alone() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let (mut stream, vocab) = (stream(2), 515);
    let penalised = SamplingParams { repetition_penalty: 1.2, ..SamplingParams::default() };
    for params in [
        SamplingParams { min_p: 1e-3, ..penalised.clone() },
        SamplingParams { top_p: 0.9, top_k: 300, ..penalised.clone() },
        SamplingParams { greedy: true, ..penalised },
    ] {
        let options = Options { params, eos: vec![3], banned: vec![7] };
        let mut rows: Vec<Row> = (0..19).map(|_| random_row(&mut stream, vocab)).collect();
        let together = options.on_gpu(gpu, &rows)?;
        for (row, token) in rows.iter().zip(&together) {
            assert_eq!(options.on_gpu(gpu, std::slice::from_ref(row))?, [*token]);
        }
        rows.rotate_left(5);
        rows.truncate(17);
        assert_eq!(options.on_gpu(gpu, &rows)?, [&together[5..], &together[..3]].concat());
    }
    Ok(())
}

/// Tokens that are too rare to be ranked still count in what top-p lets go: three tokens in ten of those that stay depend on it.
#[test]
fn rare_tokens_have_their_share() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let params = SamplingParams { top_p: 0.5, ..SamplingParams::default() };
    let options = Options { params, ..Options::default() };
    // Weights of 1, 50 times 0.03 and, below 0.25 / 1051, 1000 times 0.0001: half of all is 1.3, of which the rare make 0.1.
    let weight = |id: usize| {
        if id == 525 {
            1.0f32
        } else if id % 21 == 5 {
            0.03
        } else {
            0.0001
        }
    };
    let logits: Vec<f32> = (0..1051).map(|id| weight(id).ln()).collect();
    assert_eq!((0..1051).filter(|&id| weight(id) == 0.03).count(), 50);
    let rows: Vec<Row> = (0..if is_checked() { 4 } else { 60 })
        .map(|prompt| Row {
            logits: logits.clone(),
            prompt: Vec::new(),
            output: Vec::new(),
            key: DrawKey { seed: 2, prompt, completion: 0, position: 0 },
        })
        .collect();
    options.check(gpu, &rows)
}

/// A draw by all 53 bits of its number: between two likely tokens stand many of 2^-36 each, of which the number chooses one.
#[test]
fn a_draw_reaches_the_rarest() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let (vocab, logit) = (100_000, -25.0f32);
    let mut logits = vec![logit; vocab];
    (logits[0], logits[vocab - 1]) = (0.0, 0.0);
    let weight = f64::from(logit).exp();
    let rare = weight * (vocab - 2) as f64;
    // Numbers that fall among the rare tokens, in the middle of all.
    let keys = (0..).map(|prompt| DrawKey { seed: 3, prompt, completion: 0, position: 0 });
    for key in keys.filter(|key| (key.unit() - 0.5).abs() < rare / 5.0).take(3) {
        let row = Row { logits: logits.clone(), prompt: Vec::new(), output: Vec::new(), key };
        let options = Options::default();
        let want = 1 + ((key.unit() * (2.0 + rare) - 1.0) / weight) as i32;
        // The weights are rounded to f32, and f64 to 2^-16 of them at each addition.
        for got in [options.on_gpu(gpu, std::slice::from_ref(&row))?[0], options.on_cpu(&row)? as i32] {
            assert!(got.abs_diff(want) <= 1, "{got} instead of {want}");
        }
    }
    Ok(())
}

/// Over a generation: tokens that were drawn have their penalty from then on, each in its own sequence, while sequences end and
/// their rows move up; the first tokens don't end one.
#[test]
fn what_was_drawn_is_seen() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let vocab = 37;
    let mut stream = stream(3);
    let logits: Vec<f32> = (0..vocab).map(|_| stream.normal()).collect();
    for greedy in [false, true] {
        let params = SamplingParams {
            repetition_penalty: 8.0,
            temperature: 0.5,
            min_new_tokens: 4,
            greedy,
            ..SamplingParams::default()
        };
        let options = Options { params, eos: vec![2, 36, 11], banned: vec![5] };
        let prompts: [(&[u32], usize); 3] = [(&[1, 2, 3, 99], 2), (&[], 1), (&[20, 20, 36], 2)];
        let mut sampler =
            DeviceSampler::new(gpu, &options.params, &options.eos, &options.banned, vocab, &prompts)?;
        let mut rows: Vec<Row> = prompts
            .iter()
            .enumerate()
            .flat_map(|(place, (prompt, group))| (0..*group).map(move |member| (place, prompt, member)))
            .map(|(place, prompt, member)| Row {
                logits: logits.clone(),
                prompt: prompt.to_vec(),
                output: Vec::new(),
                key: DrawKey { seed: 4, prompt: place as u32, completion: member as u32, position: 0 },
            })
            .collect();
        for position in 0..12 {
            // Sequence 1 ends early, 0 later.
            let going: Vec<usize> =
                (0..5).filter(|&s| !(s == 1 && position > 3 || s == 0 && position > 7)).collect();
            let batch: Vec<Row> = going
                .iter()
                .map(|&s| Row { key: DrawKey { position, ..rows[s].key }, ..rows[s].clone() })
                .collect();
            let keys: Vec<DrawKey> = batch.iter().map(|row| row.key).collect();
            let drawn = sampler.draw(&logits_on(gpu, &batch)?, &going, &keys)?;
            for ((&s, row), token) in going.iter().zip(&batch).zip(sampler.tokens(&drawn)?) {
                assert_eq!(token, options.on_cpu(row)?, "sequence {s}, position {position}, greedy {greedy}");
                rows[s].output.push(token);
            }
        }
    }
    Ok(())
}

fn message(result: Result<impl std::fmt::Debug>) -> String {
    match result {
        Err(Error::Protect(message)) => message,
        other => panic!("{other:?}"),
    }
}

/// Logits that are none, and rows without a candidate, are the host's errors, in its words.
#[test]
fn rows_without_a_token() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let mut stream = stream(4);
    for vocab in [1, 17, 1030] {
        let good = random_row(&mut stream, vocab);
        let with = |changes: &[(usize, f32)]| {
            let mut row = Row { logits: vec![0.5; vocab], ..good.clone() };
            changes.iter().for_each(|&(at, x)| row.logits[at] = x);
            row
        };
        let last = vocab - 1;
        let bad = [
            with(&[(0, f32::NAN)]),
            with(&[(last, f32::NAN)]),
            with(&[(last, f32::INFINITY)]),
            with(&[(last, f32::NAN), (last / 2, f32::INFINITY)]),
            with(&[(last, f32::INFINITY), (last / 2, -f32::NAN)]),
            Row { logits: vec![MINUS; vocab], ..good.clone() },
        ];
        for (number, row) in bad.iter().enumerate() {
            for greedy in [false, true] {
                // The banned token's logit has to be a number too.
                let params = SamplingParams { greedy, top_p: 0.9, top_k: 3, ..SamplingParams::default() };
                let options = Options { params, banned: vec![last as u32 + 1], ..Options::default() };
                let fine = Row { logits: vec![0.0; vocab], ..good.clone() };
                let rows = [fine.clone(), row.clone(), fine];
                let mut sampler = options.sampler(gpu, &rows)?;
                let drawn =
                    sampler.draw(&logits_on(gpu, &rows)?, &[0, 1, 2], &rows.each_ref().map(|r| r.key))?;
                let codes = drawn.download()?;
                assert!(codes[0] >= 0 && codes[1] < 0 && codes[2] >= 0, "{codes:?}, row {number}");
                assert_eq!(message(sampler.tokens(&drawn)), message(options.on_cpu(row)), "row {number}");
            }
        }
        let all: Vec<u32> = (0..vocab as u32).collect();
        let options = Options { banned: all, ..Options::default() };
        let nan = with(&[(last, f32::NAN)]);
        assert_eq!(options.on_gpu(gpu, &[with(&[]), nan.clone()])?[0], -1);
        let mut sampler = options.sampler(gpu, std::slice::from_ref(&nan))?;
        let drawn = sampler.draw(&logits_on(gpu, std::slice::from_ref(&nan))?, &[0], &[nan.key])?;
        assert_eq!(message(sampler.tokens(&drawn)), message(options.on_cpu(&nan)));
    }
    Ok(())
}

#[test]
fn refuses_what_does_not_fit() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let key = DrawKey { seed: 1, prompt: 0, completion: 0, position: 0 };
    let device = Device::Cuda(gpu.clone());
    let logits = |rows: usize, vocab: usize| {
        Tensor::new(&[rows, vocab], vec![0.0f32; rows * vocab])?.to_device(&device, Purpose::Inputs)
    };
    let params = SamplingParams::default();
    let mut sampler = DeviceSampler::new(gpu, &params, &[], &[], 5, &[(&[], 3)])?;
    assert!(sampler.draw(&logits(2, 5)?, &[2, 0], &[key; 2])?.download()?.iter().all(|&token| token >= 0));
    assert!(sampler.draw(&logits(0, 5)?, &[], &[])?.download()?.is_empty());
    assert!(sampler.draw(&logits(2, 5)?, &[1, 1], &[key; 2]).is_err(), "a sequence twice");
    assert!(sampler.draw(&logits(2, 5)?, &[1, 3], &[key; 2]).is_err(), "no such sequence");
    assert!(sampler.draw(&logits(2, 5)?, &[1], &[key; 2]).is_err(), "fewer sequences");
    assert!(sampler.draw(&logits(2, 5)?, &[1, 2], &[key]).is_err(), "fewer keys");
    assert!(sampler.draw(&logits(2, 6)?, &[1, 2], &[key; 2]).is_err(), "another vocabulary");
    assert!(sampler.draw(&logits(2, 5)?.to_cpu()?, &[1, 2], &[key; 2]).is_err(), "host memory");
    match DeviceSampler::new(gpu, &params, &[], &[], (1 << 20) + 1, &[]) {
        Err(Error::Input(message)) => assert!(message.contains("1048577"), "{message}"),
        other => panic!("{other:?}"),
    }
    Ok(())
}

/// Philox's words, by the published vectors (Random123 1.14, `kat_vectors`) and by the host's.
#[test]
fn random_words() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let pi = (0x299f_31d0_a409_3822, [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344]);
    let mut draws: Vec<(u64, [u32; 4])> = vec![(0, [0; 4]), (u64::MAX, [u32::MAX; 4]), pi];
    let mut known = vec![
        [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8],
        [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
        [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
    ];
    let mut stream = stream(5);
    for _ in 0..70 {
        let key = u64::from(stream.next_u32()) << 32 | u64::from(stream.next_u32());
        draws.push((key, [(); 4].map(|()| stream.next_u32())));
    }
    known.extend(draws[3..].iter().map(|(key, counter)| philox(*key, *counter)));
    let keys: Vec<u32> = draws.iter().flat_map(|(key, _)| [*key as u32, (key >> 32) as u32]).collect();
    let counters: Vec<u32> = draws.iter().flat_map(|(_, counter)| *counter).collect();
    let (keys, counters) = (gpu.upload(&keys, Purpose::Inputs)?, gpu.upload(&counters, Purpose::Inputs)?);
    let mut words = gpu.alloc::<u32>(4 * draws.len(), Purpose::Inputs)?;
    // SAFETY: two words of each key, four of each counter and result.
    unsafe {
        conformance::conform_philox(
            gpu,
            Grid::new(1, 32)?,
            keys.ptr(),
            counters.ptr(),
            words.ptr_mut(),
            draws.len() as i32,
        )?;
    }
    assert_eq!(words.download()?, known.concat());
    Ok(())
}
