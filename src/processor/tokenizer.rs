//! `tokenizer.json`: text to token ids and back.

mod parts;

use std::path::{Path, PathBuf};

use tokenizers::{Model, OffsetType, PreTokenizedString, PreTokenizer};
use tokenizers::{NormalizedString, Normalizer};

use crate::error::{Error, Result};
use crate::files::{file_inside, read_bounded};
use crate::processor::tokenizer::parts::Parts;

/// Most bytes read from a `tokenizer.json` (Qwen2-VL's has 7 MB).
const MAX_TOKENIZER_BYTES: u64 = 32 << 20;

/// A tokenizer. Nothing outside this file knows which crate is behind it.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Named in errors.
    path: PathBuf,
    /// `(content, id, special)` of the added tokens, longest content first.
    added: Vec<(String, u32, bool)>,
    /// One more than the largest id of the file.
    id_limit: usize,
    /// What a line break encodes to.
    newline: Vec<u32>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("path", &self.path).field("id_limit", &self.id_limit()).finish()
    }
}

impl Tokenizer {
    /// Reads `tokenizer.json` in a checkpoint folder. Truncation and padding that it may prescribe are ignored.
    ///
    /// # Errors
    /// [`Error::Content`] where it is missing, a link out of the folder, too large or not a tokenizer; [`Error::Io`].
    pub fn load(folder: &Path) -> Result<Self> {
        let Some(path) = file_inside(folder, "tokenizer.json")? else {
            return Err(Error::content(
                folder.join("tokenizer.json"),
                "is not there; copy it from the original checkpoint (vocab.json alone is not enough)",
            ));
        };
        Self::from_json(&read_bounded(&path, MAX_TOKENIZER_BYTES)?, &path)
    }

    /// The same from bytes; `path` stands in errors only.
    ///
    /// # Errors
    /// [`Error::Content`].
    pub fn from_json(json: &[u8], path: &Path) -> Result<Self> {
        let broken = |error: &dyn std::fmt::Display| {
            Error::content(path, format!("not a usable tokenizer: {error}; copy the file again"))
        };
        // The crate panics on some syntax errors (its decoder section expects valid JSON), so the syntax is checked first;
        // a panic on a wrong value in valid JSON is caught.
        let parts: Parts = serde_json::from_slice(json).map_err(|error| broken(&error))?;
        parts.check().map_err(|reason| broken(&reason))?;
        let mut inner = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(json))
            .map_err(|_| broken(&"the tokenizer library rejects a value"))?
            .map_err(|error| broken(&error))?;
        inner.with_truncation(None).map_err(|error| broken(&error))?;
        inner.with_padding(None);
        let mut added: Vec<_> = inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| !token.content.is_empty())
            .map(|(id, token)| (token.content, id, token.special))
            .collect();
        added.sort_by(|a, b| (b.0.len(), &a.0).cmp(&(a.0.len(), &b.0)));
        let largest_added = added.iter().map(|(_, id, _)| *id as usize + 1).max().unwrap_or(0);
        let id_limit = largest_added.max(parts.model.vocab.limit);
        let path = path.to_path_buf();
        let mut tokenizer = Tokenizer { inner, path, added, id_limit, newline: Vec::new() };
        tokenizer.newline = tokenizer.encode("\n")?;
        Ok(tokenizer)
    }

    /// Token ids of `text`, added tokens (such as `<|im_end|>`) recognised wherever they stand. Nothing is added at
    /// either end.
    ///
    /// # Errors
    /// [`Error::Content`] where the tokenizer's model cannot represent the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(|error| self.cannot_encode(&error))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids of `text` as ordinary text: no added token is recognised.
    ///
    /// # Errors
    /// [`Error::Content`] where the tokenizer's model cannot represent the text.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        let fail = |error| self.cannot_encode(&error);
        let mut normalized = NormalizedString::from(text);
        if let Some(normalizer) = self.inner.get_normalizer() {
            normalizer.normalize(&mut normalized).map_err(fail)?;
        }
        let mut split = PreTokenizedString::from(normalized);
        if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut split).map_err(fail)?;
        }
        let model = self.inner.get_model();
        split.tokenize(|piece| model.tokenize(piece.get())).map_err(fail)?;
        let encoding = split.into_encoding(None, 0, OffsetType::None).map_err(fail)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids of a text that continues another, without the space that some tokenizers put at the start of a text:
    /// encoded behind a line break whose ids are then removed, as transformers does. `plain` as in
    /// [`Tokenizer::encode_plain`].
    ///
    /// # Errors
    /// [`Error::Content`] where the tokenizer's model cannot represent the text.
    pub fn encode_continuation(&self, text: &str, plain: bool) -> Result<Vec<u32>> {
        let encode = |text: &str| if plain { self.encode_plain(text) } else { self.encode(text) };
        let ids = encode(&format!("\n{text}"))?;
        match ids.strip_prefix(self.newline.as_slice()) {
            Some(rest) => Ok(rest.to_vec()),
            None => encode(text),
        }
    }

    /// Text of `ids`, special tokens left out if `skip_special_tokens`. Ids that are no token give nothing, bytes that are
    /// not UTF-8 give U+FFFD.
    ///
    /// # Errors
    /// [`Error::Content`] where the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        self.inner
            .decode(ids, skip_special_tokens)
            .map_err(|error| Error::content(&self.path, format!("cannot decode token ids: {error}")))
    }

    /// A decoder for tokens that come one at a time.
    pub fn decode_stream(&self, skip_special_tokens: bool) -> DecodeStream<'_> {
        DecodeStream { tokenizer: self, skip_special_tokens, window: Vec::new(), emitted: 0 }
    }

    /// The id of the token whose content is exactly `content`, such as `<|image_pad|>`.
    pub fn token_id(&self, content: &str) -> Option<u32> {
        self.inner.token_to_id(content)
    }

    /// Whether `id` is a special token, one that [`Tokenizer::decode`] can leave out.
    pub fn is_special(&self, id: u32) -> bool {
        self.added.iter().any(|(_, added, special)| *added == id && *special)
    }

    /// One more than the largest id: the rows that an embedding needs at least.
    pub fn id_limit(&self) -> usize {
        self.id_limit
    }

    /// The tokens that text of a user must not turn into, longest first: every special token, and every other added token
    /// that `template` itself writes, except white space. This is what transformers' `sanitize_control_tokens` protects.
    pub fn control_tokens(&self, template: &str) -> Vec<&str> {
        self.added
            .iter()
            .filter(|(content, _, special)| {
                *special || (template.contains(content) && !content.trim().is_empty())
            })
            .map(|(content, _, _)| content.as_str())
            .collect()
    }

    fn cannot_encode(&self, error: &dyn std::fmt::Display) -> Error {
        Error::content(&self.path, format!("cannot encode a text: {error}"))
    }
}

/// Decodes a byte-level tokenizer's tokens one at a time: what [`DecodeStream::push`] and [`DecodeStream::finish`] return
/// adds up to what [`Tokenizer::decode`] gives for all ids at once. Used to find stop strings while sampling.
#[derive(Debug)]
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special_tokens: bool,
    /// Ids since the last point where every character was complete.
    window: Vec<u32>,
    /// Bytes of the window's text that were already returned.
    emitted: usize,
}

impl DecodeStream<'_> {
    /// The text that `id` completes: empty while a character's bytes are not all there.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.window.push(id);
        let text = self.tokenizer.decode(&self.window, self.skip_special_tokens)?;
        // An incomplete character at the end shows as exactly one U+FFFD.
        let (complete, pending) = match text.strip_suffix('\u{FFFD}') {
            Some(complete) => (complete, true),
            None => (text.as_str(), false),
        };
        let new = complete.get(self.emitted..).unwrap_or_default().to_string();
        if pending {
            self.emitted = self.emitted.max(complete.len());
        } else {
            self.window.clear();
            self.emitted = 0;
        }
        Ok(new)
    }

    /// What is left: U+FFFD where the last character is incomplete, else nothing.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(self) -> Result<String> {
        let text = self.tokenizer.decode(&self.window, self.skip_special_tokens)?;
        Ok(text.get(self.emitted..).unwrap_or_default().to_string())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn bundle() -> Tokenizer {
        Tokenizer::load(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bundles/qwen2_vl_a"))).unwrap()
    }

    #[test]
    fn added_tokens_are_tokens_in_encode_and_text_in_encode_plain() {
        let tokenizer = bundle();
        assert_eq!(tokenizer.token_id("<|im_end|>"), Some(501));
        assert_eq!(tokenizer.id_limit(), 515);
        assert!(tokenizer.is_special(501) && !tokenizer.is_special(513) && !tokenizer.is_special(0));
        assert_eq!(tokenizer.encode("<|im_end|><tool_call>").unwrap(), [501, 513]);
        let plain = tokenizer.encode_plain("a<|im_end|>b").unwrap();
        assert!(plain.iter().all(|&id| id < 499), "{plain:?}");
        assert_eq!(tokenizer.decode(&plain, true).unwrap(), "a<|im_end|>b");
        let ordinary = "How many red squares?\n\n 3 cafe\u{301} 三角形";
        assert_eq!(tokenizer.encode_plain(ordinary).unwrap(), tokenizer.encode(ordinary).unwrap());
        assert_eq!(tokenizer.control_tokens("no token").len(), 14);
        assert_eq!(tokenizer.control_tokens("x<tool_call>").iter().filter(|t| t.contains("tool")).count(), 1);
    }

    #[test]
    fn decoding_drops_unknown_ids_and_survives_broken_utf8() {
        let tokenizer = bundle();
        assert_eq!(tokenizer.decode(&[501, 599, 4_000_000_000], false).unwrap(), "<|im_end|>");
        assert_eq!(tokenizer.decode(&[501, 513], true).unwrap(), "<tool_call>");
        let euro = tokenizer.encode("€").unwrap();
        assert!(euro.len() > 1, "the test needs a character of several tokens");
        assert_eq!(tokenizer.decode(&euro[..1], false).unwrap(), "\u{FFFD}");
    }

    #[test]
    fn streaming_adds_up_to_decoding_at_once() {
        let tokenizer = bundle();
        let text = tokenizer.encode("a三b🙂c€\n").unwrap();
        // The last bytes of characters without their first, and firsts without their lasts.
        let mut rng = 12_345u32;
        let noise: Vec<u32> = (0..400)
            .map(|_| {
                rng = rng.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (rng >> 16) % 620
            })
            .collect();
        for ids in [text.clone(), noise, text[1..].to_vec(), vec![]] {
            for skip in [false, true] {
                let mut stream = tokenizer.decode_stream(skip);
                let mut streamed = String::new();
                for &id in &ids {
                    streamed += &stream.push(id).unwrap();
                }
                streamed += &stream.finish().unwrap();
                assert_eq!(streamed, tokenizer.decode(&ids, skip).unwrap());
            }
        }
        let mut stream = tokenizer.decode_stream(false);
        let euro = tokenizer.encode("€").unwrap();
        assert_eq!(stream.push(euro[0]).unwrap(), "", "an incomplete character is held back");
    }

    #[test]
    fn broken_files_are_named() {
        let json =
            std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bundles/qwen2_vl_a/tokenizer.json"))
                .unwrap();
        for broken in
            [&json[..json.len() / 2], b"", b"{}", b"[1]", b"\xff\xfe", br#"{"model":{"type":"Nope"}}"#]
        {
            let error = Tokenizer::from_json(broken, Path::new("tokenizer.json")).unwrap_err();
            assert_eq!(error.exit_code(), 65);
            assert!(error.to_string().starts_with("tokenizer.json: not a usable tokenizer"), "{error}");
        }
        // A syntax error in the part where the crate would panic.
        let text = String::from_utf8(json).unwrap().replace(r#""decoder":{"type":"#, r#""decoder":{"type""#);
        let error = Tokenizer::from_json(text.as_bytes(), Path::new("tokenizer.json")).unwrap_err();
        assert!(error.to_string().contains("column"), "{error}");
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Tokenizer::load(folder.path()).unwrap_err().exit_code(), 65);
        std::fs::create_dir(folder.path().join("tokenizer.json")).unwrap();
        assert_eq!(Tokenizer::load(folder.path()).unwrap_err().exit_code(), 65);
    }
}
