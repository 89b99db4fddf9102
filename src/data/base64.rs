//! Bytes as text: base64 and `data:` URIs.

/// What stands behind `data:` (RFC 2397), which has to be an image in base64.
pub(super) fn data_uri(uri: &str) -> Result<Vec<u8>, String> {
    let (kind, text) = uri.split_once(',').ok_or("a `data:` URI without a comma")?;
    if !kind.starts_with("image/") || !kind.ends_with(";base64") {
        let shown: String = kind.chars().take(40).collect();
        return Err(format!("a `data:` URI of {shown:?}; data:image/...;base64 is read"));
    }
    base64(text)
}

/// Base64 (RFC 4648, either alphabet); padding and white space are optional.
pub(super) fn base64(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held) = (0u32, 0);
    let text = text.trim_ascii_end().trim_end_matches('=');
    for (at, byte) in text.bytes().enumerate() {
        let six = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            white if white.is_ascii_whitespace() => continue,
            _ => return Err(format!("not valid base64 at character {}", at + 1)),
        };
        bits = (bits << 6) | u32::from(six);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    // Six bits over: a character is missing.
    if held == 6 {
        return Err("base64 that is cut short".into());
    }
    Ok(bytes)
}

/// An image as a `data:` URI.
pub(crate) fn to_data_uri(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let kind = match bytes {
        [0xff, 0xd8, ..] => "jpeg",
        [b'R', b'I', b'F', b'F', ..] => "webp",
        _ => "png",
    };
    let mut text = format!("data:image/{kind};base64,");
    for three in bytes.chunks(3) {
        let bits =
            three.iter().fold(0u32, |bits, byte| (bits << 8) | u32::from(*byte)) << (8 * (3 - three.len()));
        let digit = |place: usize| char::from(DIGITS[(bits >> (18 - 6 * place)) as usize & 63]);
        text.extend((0..4).map(|place| if place <= three.len() { digit(place) } else { '=' }));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4648, section 10, and its section 5's alphabet.
    #[test]
    fn base64_as_in_the_rfc() {
        for (text, wanted) in [
            ("", &b""[..]),
            ("Zg==", b"f"),
            ("Zm8=", b"fo"),
            ("Zm9v", b"foo"),
            ("Zm9vYg==", b"foob"),
            ("Zm9vYmE=", b"fooba"),
            ("Zm9vYmFy", b"foobar"),
            ("Zm9v\nYmFy\n", b"foobar"),
            ("Zm9vYg", b"foob"),
            ("-_+/", b"\xfb\xff\xbf"),
        ] {
            assert_eq!(&*base64(text).unwrap(), wanted, "{text}");
            if text.len() % 4 == 0 && !text.contains('-') {
                assert_eq!(to_data_uri(wanted), format!("data:image/png;base64,{text}"));
            }
        }
        for text in ["Z", "Zm9vY", "Zm=9", "Zm9\u{e9}"] {
            assert!(base64(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_byte_comes_back() {
        let bytes: Vec<u8> = (0..=255).rev().collect();
        for length in 0..bytes.len() {
            let uri = to_data_uri(&bytes[..length]);
            assert_eq!(data_uri(uri.strip_prefix("data:").unwrap()).unwrap(), bytes[..length]);
        }
    }
}
