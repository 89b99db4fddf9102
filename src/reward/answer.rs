//! The answer in a text: where it stands, what it says, and whether it is the reference's.
//!
//! # What is compared
//! | kind | examples of the same |
//! |---|---|
//! | integers, thousands | `1000`, `1,000`, `1 000`, `1\,000`, `007` is `7` |
//! | decimals, powers of ten | `0.5`, `.50`, `5e-1`, `5 \times 10^{-1}` |
//! | fractions, mixed numbers | `\frac{7}{3}`, `7/3`, `\dfrac73`, `2\frac13`, `2 1/3`, `2⅓`, `14:6` |
//! | percent | `10%` is `10` (the sign left out) and `0.1` (its value) |
//! | units | `145°`, `145^\circ`, `145 degrees`, `145`; `24 cm²`, `24 square cm`; `5 m/s`; not `12 m` and `12 cm` |
//! | roots, powers, constants | `8√{3}`, `8\sqrt3`, `\frac{24}{\sqrt 3}`; `9π`; `2^{10}`; `e`, `\ln`, `\log`, `\sin 30^\circ`, `5!`, `\|-3\|` |
//! | rounded numbers | a decimal is any number that rounds to it in six places: `0.333333` is `1/3`; `0.33` is not |
//! | expressions in up to 3 variables | `(x+1)^2`, `x^2+2x+1` |
//! | equations, inequalities | `x = 5` is `5`; `2x+3y=6` is `4x+6y=12`; `x>2` is `2<x`, and is met by `(2,\infty)` |
//! | tuples, lists, sets, intervals | `(1, 2)` in order; `{1, 2}`, `1, 2` and `1 or 2` in any order; `[1, 2)`; `∪`; `3 ± √2` |
//! | choices | `B`, `(B)`, `b.`, `B. 5`, `option B` |
//! | text | the same without case, white space and LaTeX dressing |
//!
//! A number stands for a phrase around it if that is all mathematics in it: `There are 3 items.` is 3.
//!
//! # Bounds
//! An answer longer than 4096 bytes is wrong; brackets are at most 64 deep, exponents at most 10,000, exact numbers at most 4096
//! bits long, and the steps of a comparison are counted: some 10 ms at most. What cannot be decided so is equal only if it is
//! spelled alike. Irrational numbers are told apart to some 14 digits.

mod compare;
mod evaluate;
mod expr;
mod extract;
mod lexer;
mod parse;
mod rational;
mod read;
mod token;
mod unit;

#[cfg(test)]
mod tests;

use read::Reading;

pub use extract::extract;
pub(super) use extract::{boxed, extract_reference};

/// Longest answer that is looked at, in bytes; a longer one is wrong.
const MAX_ANSWER_BYTES: usize = 4096;

/// The most characters of [`parsed`].
const MAX_SHOWN: usize = 200;

/// Whether the answer found in `completion` (see [`extract()`]) is `solution`'s: that of its answer tag or box, or the
/// whole of it. The [module](self) says what is the same.
pub fn is_correct(completion: &str, solution: &str) -> bool {
    let (answer, reference) = (extract(completion), extract_reference(solution));
    if answer.len() > MAX_ANSWER_BYTES || reference.len() > MAX_ANSWER_BYTES {
        return false;
    }
    Reading::of(reference).is_met_by(&Reading::of(answer))
}

/// Whether two texts, each of at most some kilobytes, are the same mathematics, whatever the units.
pub(super) fn same_value(wanted: &str, given: &str) -> bool {
    Reading::of(wanted).has_value_of(&Reading::of(given))
}

/// What `text` is read as, in one short spelling, for showing: `7/3`, `8*√(3)`, `24 cm^2`, `{1, 2}`, `B`. `None` if it
/// holds no answer.
///
/// At most 200 characters; it may hold whatever the text does, so escape it.
pub fn parsed(text: &str) -> Option<String> {
    let answer = extract(text);
    if answer.len() > MAX_ANSWER_BYTES {
        return None;
    }
    let shown = Reading::of(answer).to_string();
    let mut short: String = shown.chars().take(MAX_SHOWN).collect();
    if short.len() < shown.len() {
        short.push('…');
    }
    (!short.is_empty()).then_some(short)
}
