//! The nearest known name, for "did you mean".

/// The entry of `known` most like `name`, if one is like enough to be worth suggesting.
///
/// Jaro-Winkler similarity, case and `-`/`_` ignored; below 0.75 nothing is suggested.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |s: &str| s.to_lowercase().replace('-', "_");
    let name = plain(name);
    known
        .into_iter()
        .map(|k| (strsim::jaro_winkler(&name, &plain(k)), k))
        .filter(|(similarity, _)| *similarity >= 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, k)| k)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_only_what_is_alike() {
        let known = ["accuracy", "format", "problem"];
        assert_eq!(nearest("acuracy", known), Some("accuracy"));
        assert_eq!(nearest("Problems", known), Some("problem"));
        assert_eq!(nearest("zzz", known), None);
    }
}
