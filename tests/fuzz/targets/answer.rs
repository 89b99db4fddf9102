//! The rewards of a model's text: the completion stands before the first zero byte, the dataset's `solution` after it.

use othink::data::{PromptTemplate, Sample};
use othink::reward::{
    Accuracy, AccuracyR1v, Completed, Format, Reward, RewardSet, extract, is_correct, parsed,
};

use super::{Outcome, Target, halves};

pub const TARGET: Target = Target {
    name: "answer",
    body,
    seeds,
    dictionary: &[
        b"\x00",
        b"<think>",
        b"</think>",
        b"<answer>",
        b"</answer>",
        b"\\boxed{",
        b"\\frac{1}{2}",
        b"\\frac12",
        b"\\dfrac{",
        b"\\text{ cm}",
        b"\\textbf{",
        b"\\mathrm{",
        b"\\left(",
        b"\\right)",
        b"\\sqrt{3}",
        b"\\pi",
        b"\\cdot",
        b"\\%",
        b"\\$",
        b"^{\\circ}",
        b"^\\circ",
        b"^{2}",
        b"1,000",
        b"0.5",
        b".5",
        b"5.",
        b" / ",
        b"x = ",
        b"-",
        b"\xe2\x88\x92",
        b"\xc2\xb0",
        b"\xe2\x88\x9a",
        b"\xcf\x80",
        b"cm^2",
        b"square cm",
        b"\xe5\x8e\x98\xe7\xb1\xb3",
        b"percent",
        b"(A)",
        b"**",
        b"$",
        b"170141183460469231731687303715884105727",
        b"170141183460469231731687303715884105728",
        b"99999999999999999999999999999999999999",
        b"0.00000000000000000000000000000000000001",
        b"1/0",
        b"2\\frac13",
        b"\\sqrt[3]{8}",
        b"\\{1,2\\}",
        b"[1,2)",
        b"\\cup",
        b"\\in",
        b"\\pm",
        b"\\infty",
        b"\\le",
        b"<",
        b"|x|",
        b"\\log_2",
        b"\\sin 30^\\circ",
        b"x^2",
        b"f(x)=",
        b"x_1",
        b"0.\\overline{3}",
        b"\xc2\xbd",
        b"1e9",
        b"5!",
        b" and ",
        b"3:4",
        b"the answer is ",
        b"option B",
        b"B. 5",
        b"0/0",
        b"\x1c",
        b"\xe2\x80\x83",
        b"\xc4\xb0",
    ],
    repair: |_| {},
    max_bytes: 1 << 13,
};

fn body(input: &[u8]) -> Outcome {
    let (completion, solution) = halves(input);
    let completion = String::from_utf8_lossy(completion);
    let solution = solution.map(String::from_utf8_lossy);
    let solution = solution.as_deref().unwrap_or("3");

    let answer = extract(&completion);
    assert_eq!(answer, answer.trim());
    assert!(completion.contains(answer), "the answer is not in the text");
    let correct = is_correct(&completion, solution);
    // What is in the tag is what counts, whatever stood around it.
    if !answer.contains("</answer>") {
        let tagged = format!("<think>8</think> <answer>{answer}</answer>");
        assert_eq!(extract(&tagged), answer);
        assert_eq!(is_correct(&tagged, solution), correct, "{answer:?} in a tag is judged otherwise");
    }
    if let Some(shown) = parsed(&completion) {
        assert!(shown.chars().count() <= 201 && !shown.is_empty(), "{shown:?}");
    }
    equals_itself(answer);
    equals_itself(solution.trim());
    symmetric(answer, solution.trim());

    let sample = Sample::from_problem(0, vec![], "?", PromptTemplate::None, Some(solution.into()));
    let rewards = vec![Box::new(Accuracy) as Box<dyn Reward>, Box::new(Format), Box::new(AccuracyR1v)];
    let rewards = RewardSet::from_rewards(rewards, &[]).expect("three rewards");
    let completed = Completed { sample: &sample, text: &completion, tokens: &[] };
    let scores = rewards.score(&[completed], &|_| Ok(())).expect("nothing can fail").remove(0);
    let format = scores[1];
    assert_eq!(scores[0], Some(f64::from(u8::from(correct))));
    assert!([Some(0.0), Some(1.0)].contains(&scores[2]));
    assert_eq!(format == Some(1.0), well_formed(&completion), "{completion:?}");
    let total = rewards.total(&scores).expect("both apply");
    assert!([0.0, 1.0, 2.0, 3.0].contains(&total));
    let shown = parsed(&completion).map(|shown| shape(&shown));
    Outcome::of((correct, format == Some(1.0), answer.len() == completion.trim().len(), shown))
}

/// What kinds of characters an answer is shown with, each once, in their order: a way through the parser.
fn shape(shown: &str) -> String {
    let kind = |c: char| match c {
        c if c.is_ascii_digit() => '0',
        c if c.is_alphabetic() => 'a',
        c => c,
    };
    let mut kinds = String::new();
    for kind in shown.chars().map(kind) {
        if !kinds.contains(kind) && kinds.len() < 8 {
            kinds.push(kind);
        }
    }
    kinds
}

/// An answer with a digit in it is right where it is the reference, and not where the reference is the next number.
fn equals_itself(answer: &str) {
    let is_text = ["<answer>", "</answer>", "\\boxed{"].iter().all(|mark| !answer.contains(mark));
    let has_digit = answer.contains(|c: char| c.is_ascii_digit());
    if is_text && has_digit && answer.len() <= 4096 {
        assert!(is_correct(&format!("<answer>{answer}</answer>"), answer), "{answer:?} is not itself");
    }
    let digits = !answer.is_empty() && answer.len() <= 18 && answer.bytes().all(|b| b.is_ascii_digit());
    if digits && let Ok(number) = answer.parse::<u64>() {
        let tagged = format!("<answer>{number}</answer>");
        assert!(is_correct(&tagged, answer), "{answer} and {number}");
        assert!(!is_correct(&tagged, &(number + 1).to_string()), "{number} and the next");
    }
}

/// Two plain numbers are equal both ways round.
fn symmetric(a: &str, b: &str) {
    if plain_number(a) && plain_number(b) {
        let correct =
            |answer: &str, reference: &str| is_correct(&format!("<answer>{answer}</answer>"), reference);
        assert_eq!(correct(a, b), correct(b, a), "{a:?} and {b:?}");
    }
}

/// `-12.5`, `3/4` or `10%`: nothing that could be a phrase with a number in it.
fn plain_number(text: &str) -> bool {
    let digits = |text: &str| (1..=30).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    let text = text.strip_prefix('-').unwrap_or(text);
    let text = text.strip_suffix('%').unwrap_or(text);
    text.split_once(['.', '/']).map_or(digits(text), |(before, after)| digits(before) && digits(after))
}

/// R1-V's pattern, by searching: the first thinking block that ends before an answer block, and the end.
fn well_formed(completion: &str) -> bool {
    let Some(inner) = completion.strip_prefix("<think>") else { return false };
    let Some(inner) = inner.strip_suffix("</answer>") else { return false };
    // Python's white space: Unicode's, and four separators.
    let space = |c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
    inner
        .match_indices("</think>")
        .any(|(at, mark)| inner[at + mark.len()..].trim_start_matches(space).starts_with("<answer>"))
}

fn seeds() -> Vec<Vec<u8>> {
    let pairs = [
        ("<think>1 2 3</think>\n<answer> 3 </answer>", "<answer> 3 </answer>"),
        ("<think>a</think><answer>\\frac{1}{2}</answer>", "0.5"),
        ("so the area is \\boxed{24 cm^{2}}", "24 square cm"),
        ("I count 7 - no, 1,234.50 in all", "1234.5"),
        ("<answer>8\\sqrt{3}</answer>", "8√{3}"),
        ("<answer>10%</answer>", "0.1"),
        ("<answer>(B)</answer>", "B"),
        ("<answer>45^\\circ</answer>", "45 degrees"),
        ("<answer>There are 3 items.</answer>", "3"),
        ("<answer>-3/4</answer>", "\\frac{-3}{4}"),
        ("<answer>2400π cm²</answer>", "2400πcm^{2}"),
        ("<think></think><answer></answer>", ""),
        ("x = 5, **7**, `9`, $11$", "$x = 11$."),
        ("the answer is (B) 5.", "B"),
        ("<answer>(x+1)^2</answer>", "x^2+2x+1"),
        ("<answer>\\{2, \\frac{1}{2}\\}</answer>", "1/2 and 2"),
        ("<answer>(2,\\infty)</answer>", "x>2"),
        ("<answer>2\\pm\\sqrt{3}</answer>", "2+\\sqrt3, 2-\\sqrt3"),
        ("<answer>y = 2x+1</answer>", "2x-y+1=0"),
        ("<answer>2\\frac{1}{3}</answer>", "2⅓"),
        ("<answer>\\sin^2 x + \\log_2 8</answer>", "3+(\\sin x)^2"),
        ("<answer>60 km/h</answer>", "60\\text{ km/h}"),
        ("<answer>8√3 ≈ 13.86</answer>", "8\\sqrt{3}"),
        ("<answer>(-\\infty,1)\\cup[2,3]</answer>", "x<1 or 2\\le x\\le3"),
        ("<answer>5^{5^{5^5}}!</answer>", "0.\\overline{3}"),
    ];
    pairs.iter().map(|(completion, solution)| format!("{completion}\0{solution}").into_bytes()).collect()
}
