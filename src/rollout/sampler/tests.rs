use super::*;
use serde::Deserialize;

/// One case of `tools/reference/make_sampler_golden.py`.
#[derive(Deserialize)]
struct Case {
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
    probs: Vec<f64>,
    argmax: u32,
}

const KEY: DrawKey = DrawKey { seed: 5, prompt: 0, completion: 0, position: 0 };

fn greedy() -> SamplingParams {
    SamplingParams { greedy: true, ..SamplingParams::default() }
}

/// Probabilities without history, eos or bans.
fn plain(logits: &[f32], params: &SamplingParams) -> Vec<f32> {
    Sampler::new().probabilities(logits, &SamplingContext::default(), params).expect("finite logits")
}

fn support(probs: &[f32]) -> Vec<usize> {
    (0..probs.len()).filter(|i| probs[*i] > 0.0).collect()
}

/// Natural logarithms, so that softmax gives `probs` back.
fn logs(probs: &[f32]) -> Vec<f32> {
    probs.iter().map(|p| p.ln()).collect()
}

#[test]
fn distributions_equal_transformers() {
    let cases: Vec<Case> =
        serde_json::from_str(include_str!("../../../tests/golden/sampler.json")).expect("golden file");
    assert_eq!(cases.len(), 64);
    // One sampler for all cases: scratch of one must not leak into the next.
    let mut sampler = Sampler::new();
    for (number, case) in cases.iter().enumerate() {
        let logits: Vec<f32> = case.logits.iter().map(|x| x.unwrap_or(f32::NEG_INFINITY)).collect();
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
        params.validate().expect("valid options");
        let context = SamplingContext {
            prompt: &case.prompt,
            output: &case.output,
            eos: &case.eos,
            banned: &case.banned,
        };
        let probs = sampler.probabilities(&logits, &context, &params).expect("finite logits");
        let kept: Vec<u32> = sampler.kept.iter().map(|c| c.id).collect();
        assert_eq!(kept, case.kept, "case {number}");
        for (id, expected) in case.kept.iter().zip(&case.probs) {
            let got = f64::from(probs[*id as usize]);
            assert!((got - expected).abs() <= 1e-6, "case {number}, token {id}: {got} instead of {expected}");
        }
        assert!((probs.iter().map(|p| f64::from(*p)).sum::<f64>() - 1.0).abs() < 1e-6, "case {number}");
        let token = sampler.token(&logits, &context, &params, KEY).expect("finite logits");
        if case.do_sample {
            assert!(case.kept.contains(&token), "case {number}: {token} is outside the support");
        } else {
            assert_eq!(token, case.argmax, "case {number}");
        }
    }
}

#[test]
fn draws_have_the_processed_frequencies() {
    let logits: Vec<f32> = (0..40).map(|i| ((i * 7) % 40) as f32 * 0.09 - 1.5).collect();
    let params = SamplingParams {
        temperature: 0.8,
        top_p: 0.97,
        top_k: 35,
        min_p: 0.02,
        repetition_penalty: 1.2,
        ..SamplingParams::default()
    };
    let context = SamplingContext { prompt: &[3, 9, 39], output: &[3, 4], eos: &[1], banned: &[17] };
    let mut sampler = Sampler::new();
    let probs = sampler.probabilities(&logits, &context, &params).expect("finite logits");
    let mut counts = vec![0u32; logits.len()];
    let draws = 200_000u32;
    for n in 0..draws {
        // All three coordinates vary, as in a run.
        let key = DrawKey { seed: 11, prompt: n % 50, completion: n / 50 % 8, position: n / 400 };
        counts[sampler.token(&logits, &context, &params, key).expect("finite logits") as usize] += 1;
    }
    let mut chi2 = 0.0;
    let mut cells = 0;
    for (p, count) in probs.iter().zip(&counts) {
        let expected = f64::from(*p) * f64::from(draws);
        if *p == 0.0 {
            assert_eq!(*count, 0, "a removed token was drawn");
        } else {
            cells += 1;
            chi2 += (f64::from(*count) - expected).powi(2) / expected;
        }
    }
    // Mean k - 1, variance 2 (k - 1): within four standard deviations on either side.
    let freedom = f64::from(cells - 1);
    assert!((20.0..34.0).contains(&freedom), "{cells} tokens kept");
    assert!((chi2 - freedom).abs() < 4.0 * (2.0 * freedom).sqrt(), "chi2 {chi2} with {freedom} degrees");
}

#[test]
fn a_draw_depends_on_its_key_alone() {
    let logits: Vec<f32> = (0..100).map(|i| (i as f32 * 0.37).sin()).collect();
    let other: Vec<f32> = (0..300).map(|i| (i as f32 * 0.11).cos() * 9.0).collect();
    let params = SamplingParams { top_p: 0.9, repetition_penalty: 1.3, ..SamplingParams::default() };
    let context = SamplingContext { prompt: &[1, 2], output: &[3], ..SamplingContext::default() };
    let crowded = SamplingContext { prompt: &[250, 9, 9], output: &[4, 5], eos: &[0], banned: &[299, 7] };
    let mut used = Sampler::new();
    for position in 0..200 {
        let key = DrawKey { position, ..KEY };
        used.token(&other, &crowded, &params, key).expect("finite logits");
        let token = used.token(&logits, &context, &params, key).expect("finite logits");
        assert_eq!(token, Sampler::new().token(&logits, &context, &params, key).expect("finite logits"));
    }
}

#[test]
fn every_coordinate_of_the_key_matters() {
    let same = KEY.unit();
    for key in [
        DrawKey { seed: 6, ..KEY },
        DrawKey { seed: KEY.seed + (1 << 32), ..KEY },
        DrawKey { prompt: 1, ..KEY },
        DrawKey { completion: 1, ..KEY },
        DrawKey { position: 1, ..KEY },
    ] {
        assert_ne!(key.unit(), same, "{key:?}");
    }
}

/// Pins the counter layout: a change would silently change every recorded run.
#[test]
fn the_counter_layout_is_pinned() {
    let key = DrawKey { seed: 1 << 40 | 7, prompt: 3, completion: 2, position: 9 };
    let words = philox((1 << 40) | 7, [9, 1, 3, 2]);
    let expected = (f64::from(words[0] >> 5) * 67_108_864.0 + f64::from(words[1] >> 6)) / 2f64.powi(53);
    assert_eq!(key.unit(), expected);
}

#[test]
fn top_k_keeps_ties_with_the_last() {
    let probs = plain(&[1.0, 3.0, 2.0, 2.0, 0.0], &SamplingParams { top_k: 2, ..SamplingParams::default() });
    assert_eq!(support(&probs), [1, 2, 3]);
}

#[test]
fn top_p_keeps_the_smallest_sufficient_set() {
    let logits = logs(&[0.1, 0.5, 0.15, 0.25]);
    let kept = |top_p| support(&plain(&logits, &SamplingParams { top_p, ..SamplingParams::default() }));
    assert_eq!(kept(0.01), [1]);
    assert_eq!(kept(0.49), [1]);
    assert_eq!(kept(0.51), [1, 3]);
    assert_eq!(kept(0.76), [1, 2, 3]);
    assert_eq!(kept(0.91), [0, 1, 2, 3]);
}

#[test]
fn top_p_splits_ties_in_favour_of_lower_ids() {
    let probs = plain(&[0.0; 8], &SamplingParams { top_p: 0.3, ..SamplingParams::default() });
    assert_eq!(support(&probs), [0, 1, 2]);
}

/// The unsorted sum of rare tokens must not change what is kept: compare with a full sort.
#[test]
fn top_p_equals_a_full_sort() {
    let n = 5000;
    let mut stream = crate::rng::Stream::new(3, Purpose::Task, 1);
    for spread in [0.01f32, 1.0, 4.0, 12.0] {
        let logits: Vec<f32> = (0..n).map(|_| stream.normal() * spread).collect();
        for top_p in [0.2, 0.9, 0.99, 0.9999] {
            let most = logits.iter().fold(f32::MIN, |m, x| m.max(*x));
            let weights: Vec<f64> = logits.iter().map(|x| f64::from(x - most).exp()).collect();
            let total: f64 = weights.iter().sum();
            let mut order: Vec<usize> = (0..n).collect();
            order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
            // Kept while what stands above is still below top_p.
            let mut above = 0.0;
            let mut expected = Vec::new();
            for i in order {
                if above / total >= top_p {
                    break;
                }
                expected.push(i);
                above += weights[i];
            }
            expected.sort_unstable();
            let params = SamplingParams { top_p, ..SamplingParams::default() };
            let mut sampler = Sampler::new();
            sampler.probabilities(&logits, &SamplingContext::default(), &params).expect("finite logits");
            let kept: Vec<usize> = sampler.kept.iter().map(|c| c.id as usize).collect();
            // Single precision of the weights may move the limit by a token among thousands of equals.
            let differing = kept.iter().filter(|i| expected.binary_search(i).is_err()).count()
                + expected.iter().filter(|i| kept.binary_search(i).is_err()).count();
            assert!(differing <= 1, "spread {spread}, top_p {top_p}: {differing} tokens differ");
        }
    }
}

#[test]
fn min_p_is_relative_to_the_likeliest() {
    let logits = logs(&[0.6, 0.25, 0.1, 0.05]);
    let kept = |min_p| support(&plain(&logits, &SamplingParams { min_p, ..SamplingParams::default() }));
    assert_eq!(kept(0.05), [0, 1, 2, 3]);
    assert_eq!(kept(0.16), [0, 1, 2]);
    assert_eq!(kept(0.4), [0, 1]);
    assert_eq!(kept(1.0), [0]);
}

/// 2 / 2 = 1 and -1 * 2 = -2 by hand; the token seen twice is penalised once.
#[test]
fn repetition_penalty_is_applied_once_per_token() {
    let context = SamplingContext { prompt: &[0, 1, 0, 77], output: &[0], ..SamplingContext::default() };
    let params = SamplingParams { repetition_penalty: 2.0, ..SamplingParams::default() };
    let mut sampler = Sampler::new();
    sampler.score(&[2.0, -1.0, 0.5], &context, &params).expect("finite logits");
    assert_eq!(sampler.scores, [1.0, -2.0, 0.5]);
}

#[test]
fn greedy_takes_the_first_of_equals_and_ignores_truncation() {
    let params = SamplingParams { temperature: 0.0, top_k: 1, top_p: 0.1, ..greedy() };
    params.validate().expect("temperature 0 is fine with greedy");
    assert_eq!(params.score_temperature(), 1.0);
    let logits = [0.0, 2.0, 1.0, 2.0];
    let context = SamplingContext::default();
    assert_eq!(Sampler::new().token(&logits, &context, &params, KEY).expect("finite logits"), 1);
    assert_eq!(support(&plain(&logits, &params)), [0, 1, 2, 3]);
}

#[test]
fn min_new_tokens_bans_eos_until_reached() {
    let params = SamplingParams { min_new_tokens: 2, ..greedy() };
    let token = |output: &[u32]| {
        let context = SamplingContext { output, eos: &[1], ..SamplingContext::default() };
        Sampler::new().token(&[0.0, 9.0, 1.0], &context, &params, KEY).expect("finite logits")
    };
    assert_eq!(token(&[]), 2);
    assert_eq!(token(&[2]), 2);
    assert_eq!(token(&[2, 2]), 1);
}

#[test]
fn case_57_rows_without_a_token_to_sample_are_refused() {
    let sample = SamplingParams::default();
    let context = SamplingContext::default();
    for params in [sample.clone(), greedy()] {
        for bad in [f32::NAN, f32::INFINITY] {
            let error =
                Sampler::new().token(&[0.0, bad, 1.0], &context, &params, KEY).expect_err("bad logit");
            assert!(matches!(&error, Error::Protect(m) if m.contains("token 1")), "{error}");
        }
        for (row, banned) in
            [(vec![f32::NEG_INFINITY; 3], vec![]), (vec![1.0; 2], vec![0, 1, 9]), (vec![], vec![])]
        {
            let context = SamplingContext { banned: &banned, ..SamplingContext::default() };
            let error = Sampler::new().token(&row, &context, &params, KEY).expect_err("nothing left");
            assert!(matches!(&error, Error::Protect(m) if m.contains("no token is left")), "{error}");
        }
    }
    let row = [f32::NEG_INFINITY, 3.0, f32::NEG_INFINITY];
    assert_eq!(Sampler::new().token(&row, &context, &sample, KEY).expect("one token is left"), 1);
}

/// Scores that overflow under a tiny temperature still make a distribution.
#[test]
fn case_57_tiny_temperature_tends_to_greedy() {
    let params = SamplingParams { temperature: 1e-37, ..SamplingParams::default() };
    params.validate().expect("tiny but normal");
    assert_eq!(plain(&[1.0, 40.0, -3.0], &params), [0.0, 1.0, 0.0]);
}

#[test]
fn case_57_ranges_are_checked_by_name() {
    let ok = SamplingParams::default();
    ok.validate().expect("defaults are valid");
    let cases = [
        ("temperature", SamplingParams { temperature: 0.0, ..ok.clone() }),
        ("temperature", SamplingParams { temperature: f64::NAN, ..ok.clone() }),
        ("temperature", SamplingParams { temperature: 1e-60, ..ok.clone() }),
        ("temperature", SamplingParams { temperature: -1.0, ..greedy() }),
        ("top_p", SamplingParams { top_p: 0.0, ..ok.clone() }),
        ("top_p", SamplingParams { top_p: 1.01, ..ok.clone() }),
        ("top_p", SamplingParams { top_p: f64::NAN, ..ok.clone() }),
        ("min_p", SamplingParams { min_p: -0.1, ..ok.clone() }),
        ("min_p", SamplingParams { min_p: f64::NAN, ..ok.clone() }),
        ("repetition_penalty", SamplingParams { repetition_penalty: 0.0, ..ok.clone() }),
        ("repetition_penalty", SamplingParams { repetition_penalty: f64::INFINITY, ..ok.clone() }),
        ("max_completion_length", SamplingParams { max_new_tokens: 0, ..ok.clone() }),
        ("min_new_tokens", SamplingParams { min_new_tokens: 9, max_new_tokens: 8, ..ok.clone() }),
    ];
    for (name, params) in cases {
        let error = params.validate().expect_err(name);
        assert!(matches!(&error, Error::Usage(m) if m.starts_with(name)), "{error}");
    }
}

#[test]
fn exponentials_are_within_a_unit_in_the_last_place_of_f64s() {
    let ulp = |y: f32| f64::from(f32::from_bits(y.to_bits() + 1)) - f64::from(y);
    let worst = (1..870_000).map(|i| i as f32 * -1e-4).map(|x| {
        let exact = f64::from(x).exp();
        (f64::from(exp_of_negative(x)) - exact).abs() / ulp(exact as f32)
    });
    let worst = worst.fold(0.0, f64::max);
    assert!(worst < 1.01, "{worst}");
    assert_eq!([-87.01, -1e4, f32::NEG_INFINITY].map(exp_of_negative), [0.0; 3]);
    assert_eq!(exp_of_negative(-1e-9), 1.0);
}
