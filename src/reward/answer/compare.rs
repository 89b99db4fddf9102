//! Whether two parsed answers are the same.
//!
//! The first is the reference. Numbers compare alike both ways round; only a reference that is an inequality may be
//! met by an interval, not the reverse. `None`: it cannot be decided (undefined, too large, too many variables); what is
//! spelled alike is then still equal.

use super::evaluate::{Failure, Fuel, Value, evaluate};
use super::expr::{Answer, Brackets, Expr, Quantity};
use super::rational::Rational;
use super::token::Relation;
use super::unit::Unit;

/// Decimal places to which a decimal and another number have to agree.
const PLACES: u32 = 6;

/// ... and how far they may be apart, relative to the larger: a tiny number is not 0.
const RELATIVE: f64 = 5e-4;

/// The most variables of two answers together.
const MAX_VARIABLES: usize = 3;

/// How many of the points have to decide.
const MIN_DECIDED: usize = 3;

/// Where functions are compared, for three variables: positive points first, for roots and logarithms; integers for
/// factorials and signs. Fractions without a pattern, since equality at 0, 1 or x = y says little.
const POINTS: [[(i64, i64); MAX_VARIABLES]; 9] = [
    [(7, 3), (13, 6), (19, 8)],
    [(3, 7), (17, 5), (11, 9)],
    [(29, 11), (2, 13), (6, 7)],
    [(-13, 5), (9, 4), (-21, 10)],
    [(31, 12), (-5, 3), (23, 6)],
    [(-8, 17), (-7, 5), (-4, 9)],
    [(4, 1), (7, 1), (3, 1)],
    [(5, 1), (2, 1), (8, 1)],
    [(3, 1), (6, 1), (5, 1)],
];

/// Whether `given` is `wanted`. See the module.
pub(super) fn equal(wanted: &Answer, given: &Answer, fuel: &mut Fuel) -> Option<bool> {
    fuel.burn(1).ok()?;
    match (wanted, given) {
        (Answer::Quantity(a), Answer::Quantity(b)) => quantities(a, b, fuel),
        (Answer::Items(a, wanted), Answer::Items(b, given)) => items(*a, wanted, *b, given, fuel),
        (Answer::Union(wanted), Answer::Union(given)) => unordered(wanted, given, fuel),
        // `x ∈ (1, 2)` is the interval.
        (Answer::Statement(..), Answer::Named { value, .. }) if !matches!(**value, Answer::Quantity(_)) => {
            equal(wanted, value, fuel)
        }
        (Answer::Named { name: a, value: x, .. }, Answer::Named { name: b, value: y, .. }) if a == b => {
            equal(x, y, fuel)
        }
        // A solution is met by a solution: `x = 5` by `5 = x`, not by `2x = 10`.
        (Answer::Named { .. } | Answer::Statement(..), Answer::Named { .. } | Answer::Statement(..)) => {
            if is_solution(wanted) && !is_solution(given) {
                return Some(false);
            }
            statements(&zeros(wanted)?, &zeros(given)?, fuel)
        }
        (Answer::Statement(first, sides), _) => match total(first, sides, fuel) {
            Some(value) => equal(&Answer::Quantity(value), given, fuel),
            None => equal(&interval(first, sides)?, given, fuel),
        },
        (_, Answer::Statement(first, sides)) => match total(first, sides, fuel) {
            Some(value) => equal(wanted, &Answer::Quantity(value), fuel),
            None => Some(false),
        },
        (Answer::Named { value, .. }, _) => equal(value, given, fuel),
        (_, Answer::Named { value, .. }) => equal(wanted, value, fuel),
        // {5} is 5.
        (Answer::Items(Brackets::Set, items), other) | (other, Answer::Items(Brackets::Set, items))
            if items.len() == 1 =>
        {
            equal(&items[0], other, fuel)
        }
        // "x < 1 or x > 2" as a union of intervals.
        (Answer::Items(Brackets::None, parts), Answer::Union(given)) => {
            let intervals = parts.iter().map(|part| match part {
                Answer::Statement(first, sides) => interval(first, sides),
                _ => None,
            });
            match intervals.collect::<Option<Vec<_>>>() {
                Some(intervals) => unordered(&intervals, given, fuel),
                None => Some(false),
            }
        }
        _ => Some(false),
    }
}

/// Whether each side is a variable alone or a constant.
fn is_solution(answer: &Answer) -> bool {
    let is_side = |q: &Quantity| matches!(q.expr, Expr::Variable(_)) || variables(&[&q.expr]).is_empty();
    match answer {
        Answer::Named { value, .. } => matches!(value.as_ref(), Answer::Quantity(value) if is_side(value)),
        Answer::Statement(first, sides) => is_side(first) && sides.iter().all(|(_, side)| is_side(side)),
        _ => false,
    }
}

/// Whether two quantities have the same value, whatever their units; a percentage's is its number or its hundredth.
fn quantities(a: &Quantity, b: &Quantity, fuel: &mut Fuel) -> Option<bool> {
    if !a.unit.agrees_with(&b.unit) {
        return Some(false);
    }
    let is_decimal = a.is_decimal || b.is_decimal;
    let as_written = expressions(&a.expr, &b.expr, is_decimal, fuel);
    if as_written == Some(true) || (a.unit == Unit::Percent) == (b.unit == Unit::Percent) {
        return as_written;
    }
    let hundredth = |q: &Quantity| {
        let hundred = Box::new(Expr::Number(Rational::integer(100)));
        if q.unit == Unit::Percent {
            Expr::Quotient(Box::new(q.expr.clone()), hundred)
        } else {
            q.expr.clone()
        }
    };
    let as_share = expressions(&hundredth(a), &hundredth(b), is_decimal, fuel);
    if as_share == Some(true) { as_share } else { as_written.and(as_share) }
}

fn expressions(a: &Expr, b: &Expr, is_decimal: bool, fuel: &mut Fuel) -> Option<bool> {
    let names = variables(&[a, b]);
    if names.is_empty() {
        return match (evaluate(a, &[], fuel), evaluate(b, &[], fuel)) {
            (Ok(a), Ok(b)) => values(&a, &b, is_decimal),
            _ => None,
        };
    }
    let mut decided = 0;
    for point in points(&names)? {
        match (evaluate(a, &point, fuel), evaluate(b, &point, fuel)) {
            (Ok(a), Ok(b)) => match values(&a, &b, false) {
                Some(true) => decided += 1,
                Some(false) => return Some(false),
                None => {}
            },
            (Err(Failure::TooLarge), _) | (_, Err(Failure::TooLarge)) => fuel.burn(1).ok()?,
            _ => {}
        }
    }
    (decided >= MIN_DECIDED).then_some(true)
}

fn variables(expressions: &[&Expr]) -> Vec<String> {
    let mut names = Vec::new();
    expressions.iter().for_each(|expr| expr.variables(&mut names));
    names.sort_unstable();
    names
}

/// [`POINTS`] for `names`; `None` if there are too many.
fn points(names: &[String]) -> Option<Vec<Vec<(&str, Rational)>>> {
    if names.len() > MAX_VARIABLES {
        return None;
    }
    let point = |values: &[(i64, i64); MAX_VARIABLES]| {
        let value = |&(num, den): &(i64, i64)| Rational::new(num.into(), den.into());
        names.iter().zip(values).map(|(name, v)| Some((name.as_str(), value(v)?))).collect()
    };
    POINTS.iter().map(point).collect()
}

fn values(a: &Value, b: &Value, is_decimal: bool) -> Option<bool> {
    if let (Value::Exact(a), Value::Exact(b)) = (a, b) {
        // 1.9999999 is no way to write 2.
        let may_round = is_decimal && !a.is_integer() && !b.is_integer() && are_close(a.to_f64(), b.to_f64());
        let rounded = || a.round(PLACES).is_some_and(|rounded| Some(rounded) == b.round(PLACES));
        return Some(a == b || (may_round && rounded()));
    }
    if matches!(a, Value::Infinite { .. }) || matches!(b, Value::Infinite { .. }) {
        return Some(a == b);
    }
    let ((a, da), (b, db)) = (a.near(), b.near());
    let (difference, error) = ((a - b).abs(), 2.0 * (da + db));
    if difference <= error {
        // Digits that cancel leave nothing to compare.
        return (error <= 1e-6 * (1.0 + a.abs().max(b.abs()))).then_some(true);
    }
    let scale = 10f64.powi(PLACES as i32);
    Some(is_decimal && are_close(a, b) && (a * scale).round() == (b * scale).round())
}

fn are_close(a: f64, b: f64) -> bool {
    (a - b).abs() <= RELATIVE * a.abs().max(b.abs())
}

fn items(a: Brackets, wanted: &[Answer], b: Brackets, given: &[Answer], fuel: &mut Fuel) -> Option<bool> {
    // Square brackets around two are an interval, around others a list.
    let plain = |brackets| match brackets {
        Brackets::Ordered('[', ']') if wanted.len() != 2 => Brackets::Ordered('(', ')'),
        brackets => brackets,
    };
    match (plain(a), plain(b)) {
        (Brackets::Set, Brackets::Set) => {
            // Twice the same element is one.
            let (there, back) = (included(wanted, given, fuel), included(given, wanted, fuel));
            both(there, back)
        }
        (Brackets::Set | Brackets::None, Brackets::Set | Brackets::None) => unordered(wanted, given, fuel),
        (x @ Brackets::Ordered(..), y @ Brackets::Ordered(..)) if x != y => Some(false),
        (Brackets::Ordered('(', ')'), _) | (_, Brackets::Ordered('(', ')')) => ordered(wanted, given, fuel),
        (Brackets::Ordered(..), Brackets::Ordered(..)) => ordered(wanted, given, fuel),
        _ => Some(false),
    }
}

fn both(a: Option<bool>, b: Option<bool>) -> Option<bool> {
    if a == Some(false) || b == Some(false) { Some(false) } else { a.and(b) }
}

fn ordered(wanted: &[Answer], given: &[Answer], fuel: &mut Fuel) -> Option<bool> {
    if wanted.len() != given.len() {
        return Some(false);
    }
    let mut all = Some(true);
    for (a, b) in wanted.iter().zip(given) {
        all = both(all, equal(a, b, fuel));
        if all == Some(false) {
            break;
        }
    }
    all
}

/// The same elements as often, in any order.
fn unordered(wanted: &[Answer], given: &[Answer], fuel: &mut Fuel) -> Option<bool> {
    if wanted.len() != given.len() {
        return Some(false);
    }
    let mut left: Vec<&Answer> = given.iter().collect();
    let mut undecided = false;
    for answer in wanted {
        let found = left.iter().position(|other| {
            let verdict = equal(answer, other, fuel);
            undecided |= verdict.is_none();
            verdict == Some(true)
        });
        match found {
            Some(at) => drop(left.swap_remove(at)),
            None if undecided => return None,
            None => return Some(false),
        }
    }
    Some(true)
}

/// Whether each of `some` is among `all`.
fn included(some: &[Answer], all: &[Answer], fuel: &mut Fuel) -> Option<bool> {
    let mut result = Some(true);
    for answer in some {
        let mut found = Some(false);
        for other in all {
            match equal(answer, other, fuel) {
                Some(true) => {
                    found = Some(true);
                    break;
                }
                Some(false) => {}
                None => found = None,
            }
        }
        result = both(result, found);
        if result == Some(false) {
            break;
        }
    }
    result
}

/// A statement as expressions that are zero (or positive, for inequalities) where it holds.
fn zeros(answer: &Answer) -> Option<Vec<(Relation, Expr)>> {
    let difference = |a: &Expr, b: &Expr| Expr::Sum(vec![a.clone(), Expr::Negative(Box::new(b.clone()))]);
    match answer {
        Answer::Named { variable, value, .. } => match (variable, value.as_ref()) {
            (Some(variable), Answer::Quantity(value)) => {
                Some(vec![(Relation::Equal, difference(variable, &value.expr))])
            }
            // A name that is no variable agrees with no other.
            _ => Some(Vec::new()),
        },
        Answer::Statement(first, sides) => {
            let mut before = &first.expr;
            let mut zeros = Vec::with_capacity(sides.len());
            for (relation, side) in sides {
                zeros.push(match relation {
                    Relation::Less | Relation::LessEqual => {
                        let mirrored = if *relation == Relation::Less {
                            Relation::Greater
                        } else {
                            Relation::GreaterEqual
                        };
                        (mirrored, difference(&side.expr, before))
                    }
                    Relation::About => (Relation::Equal, difference(before, &side.expr)),
                    relation => (*relation, difference(before, &side.expr)),
                });
                before = &side.expr;
            }
            Some(zeros)
        }
        _ => None,
    }
}

/// The same statements in any order.
fn statements(wanted: &[(Relation, Expr)], given: &[(Relation, Expr)], fuel: &mut Fuel) -> Option<bool> {
    if wanted.len() != given.len() || wanted.is_empty() {
        return Some(false);
    }
    let mut left: Vec<_> = given.iter().collect();
    for (relation, expr) in wanted {
        let mut undecided = false;
        let found = left.iter().position(|(other, given)| {
            let verdict =
                if relation == other { proportional(*relation, expr, given, fuel) } else { Some(false) };
            undecided |= verdict.is_none();
            verdict == Some(true)
        });
        match found {
            Some(at) => drop(left.swap_remove(at)),
            None if undecided => return None,
            None => return Some(false),
        }
    }
    Some(true)
}

/// Whether one expression is a constant times the other, a positive one for an inequality.
fn proportional(relation: Relation, a: &Expr, b: &Expr, fuel: &mut Fuel) -> Option<bool> {
    let is_inequality = !matches!(relation, Relation::Equal | Relation::NotEqual);
    let names = variables(&[a, b]);
    let mut factor: Option<Value> = None;
    let mut decided = 0;
    for point in points(&names)? {
        let (Ok(x), Ok(y)) = (evaluate(a, &point, fuel), evaluate(b, &point, fuel)) else {
            fuel.burn(1).ok()?;
            continue;
        };
        let ratio = match (&x, &y) {
            (Value::Infinite { .. }, _) | (_, Value::Infinite { .. }) => continue,
            (Value::Exact(x), Value::Exact(y)) => match (x.is_zero(), y.is_zero()) {
                (true, true) => continue,
                (false, false) => match x.div(y) {
                    Some(ratio) => Value::Exact(ratio),
                    None => continue,
                },
                _ => return Some(false),
            },
            _ => {
                let ((x, dx), (y, dy)) = (x.near(), y.near());
                if x.abs() <= 2.0 * dx || y.abs() <= 2.0 * dy {
                    continue;
                }
                let ratio = x / y;
                Value::Near(ratio, (dx + ratio.abs() * dy) / y.abs())
            }
        };
        if is_inequality && ratio.near().0 < 0.0 {
            return Some(false);
        }
        match &factor {
            None => factor = Some(ratio),
            Some(factor) if values(factor, &ratio, false) == Some(false) => return Some(false),
            Some(_) => {}
        }
        decided += 1;
    }
    // A statement without variables is the same at every point.
    (decided >= MIN_DECIDED).then_some(true)
}

/// What a chain of constants comes to: the last side of `2 + 3 = 5`, the exact one of `8√3 ≈ 13.9`. `None` if it is
/// another statement, or false.
fn total(first: &Quantity, sides: &[(Relation, Quantity)], fuel: &mut Fuel) -> Option<Quantity> {
    let mut last = first;
    for (relation, side) in sides {
        if !variables(&[&last.expr, &side.expr]).is_empty() {
            return None;
        }
        match relation {
            Relation::Equal if quantities(last, side, fuel) == Some(true) => last = side,
            Relation::About => break,
            _ => return None,
        }
    }
    let exact = first.unit == Unit::None || last.unit != Unit::None;
    let unit = if exact { last.unit.clone() } else { first.unit.clone() };
    Some(Quantity { unit, ..last.clone() })
}

/// The interval in which an inequality of one variable holds: `1 < x <= 2` is `(1, 2]`.
fn interval(first: &Quantity, sides: &[(Relation, Quantity)]) -> Option<Answer> {
    let is_variable = |q: &Quantity| matches!(q.expr, Expr::Variable(_));
    let is_constant = |q: &Quantity| variables(&[&q.expr]).is_empty();
    let infinity = |sign: Expr| Quantity { expr: sign, unit: Unit::None, is_decimal: false };
    let (mut low, mut high) =
        ((false, infinity(Expr::Negative(Box::new(Expr::Infinity)))), (false, infinity(Expr::Infinity)));
    let mut bound = |relation: Relation, bound: &Quantity, variable_first: bool| {
        let is_closed = matches!(relation, Relation::LessEqual | Relation::GreaterEqual);
        let is_upper = match relation {
            Relation::Less | Relation::LessEqual => variable_first,
            Relation::Greater | Relation::GreaterEqual => !variable_first,
            _ => return None,
        };
        *(if is_upper { &mut high } else { &mut low }) = (is_closed, bound.clone());
        Some(())
    };
    match sides {
        [(relation, side)] if is_variable(first) && is_constant(side) => bound(*relation, side, true)?,
        [(relation, side)] if is_constant(first) && is_variable(side) => bound(*relation, first, false)?,
        [(left, middle), (right, last)] if is_constant(first) && is_variable(middle) && is_constant(last) => {
            bound(*left, first, false)?;
            bound(*right, last, true)?;
        }
        _ => return None,
    }
    let brackets = Brackets::Ordered(if low.0 { '[' } else { '(' }, if high.0 { ']' } else { ')' });
    Some(Answer::Items(brackets, vec![Answer::Quantity(low.1), Answer::Quantity(high.1)]))
}
