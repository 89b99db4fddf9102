//! The whole processor against what transformers and Pillow computed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::SafeTensors;
use serde_json::Value;

use super::decode::{RgbImage, decode_image, load_image};
use super::*;
use crate::data::ImageSource;

fn bundle() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bundles/qwen2_vl_a")
}

fn processor() -> Processor {
    Processor::load(&bundle(), &ProcessorOptions::default()).unwrap()
}

fn golden() -> Value {
    serde_json::from_str(include_str!("../../tests/golden/processor.json")).unwrap()
}

/// A sample from messages in transformers' form; `images` in the order in which parts show them.
fn sample(messages: &Value, images: Vec<ImageSource>) -> Sample {
    let mut shown = 0..;
    let messages = messages
        .as_array()
        .unwrap()
        .iter()
        .map(|message| Message {
            role: message["role"].as_str().unwrap().into(),
            content: match &message["content"] {
                Value::String(text) => vec![Part::Text(text.clone())],
                parts => parts
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|part| match part["text"].as_str() {
                        Some(text) => Part::Text(text.into()),
                        None => Part::Image(shown.next().unwrap()),
                    })
                    .collect(),
            },
        })
        .collect();
    Sample { row: 4, messages, images, ..Sample::default() }
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}

/// A PNG of one colour, for tests that need an image and no particular one.
fn png(width: u32, height: u32) -> ImageSource {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_pixel(width, height, image::Rgb([10, 200, 30]))
        .write_to(&mut bytes, image::ImageFormat::Png)
        .unwrap();
    ImageSource::Bytes(Arc::from(bytes.into_inner()))
}

/// Ids, positions, grids and pixel values of the bundle's three examples, and that of prompt plus completion.
#[test]
fn agrees_with_transformers_on_the_bundle() {
    let inputs: Value =
        serde_json::from_slice(&std::fs::read(bundle().join("inputs.json")).unwrap()).unwrap();
    let file = std::fs::read(bundle().join("expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&file).unwrap();
    let ints = |key: &str| -> Vec<i32> {
        let data = expected.tensor(key).unwrap().data();
        data.chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let processor = processor();
    let normalisation = &processor.image_config().normalisation;
    for (index, example) in inputs["examples"].as_array().unwrap().iter().enumerate() {
        let key = |name: &str| format!("ex{index}.{name}");
        let files: Vec<PathBuf> = example["images"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| bundle().join(p.as_str().unwrap()))
            .collect();
        let images = files.iter().cloned().map(ImageSource::File).collect();
        let prompt = processor.encode(&sample(&example["messages"], images), true).unwrap();
        let completion = processor.encode_completion(example["completion"].as_str().unwrap()).unwrap();

        assert_eq!(prompt.text, example["prompt_text"].as_str().unwrap());
        assert_eq!(prompt.tokens.len() as i32, ints(&key("prompt_len"))[0]);
        let ids: Vec<i32> = prompt.tokens.iter().chain(&completion).map(|&id| id as i32).collect();
        assert_eq!(ids, ints(&key("input_ids")));
        let positions = ints(&key("position_ids"));
        for (axis, positions) in prompt.positions_3t.iter().zip(positions.chunks_exact(ids.len())) {
            let continued = (0..completion.len() as i32).map(|i| prompt.next_position + i);
            assert_eq!(axis.iter().copied().chain(continued).collect::<Vec<_>>(), positions);
        }
        let grid: Vec<i32> = prompt.images.iter().flat_map(|p| p.grid_thw).map(|n| n as i32).collect();
        assert_eq!(grid, ints(&key("image_grid_thw")));

        let pixels: Vec<f32> = {
            let data = expected.tensor(&key("pixel_values")).unwrap().data();
            data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
        };
        // From the file: exact for PNG. For JPEG from PIL's RGB, and the file's bytes within the decoders' difference.
        let decoded = expected.tensor(&format!("decoded.{}", example["images"][0].as_str().unwrap()));
        let patches = match &decoded {
            Ok(rgb) => {
                let rgb =
                    RgbImage { height: rgb.shape()[0], width: rgb.shape()[1], pixels: rgb.data().to_vec() };
                patches::patches_of(&rgb, processor.image_config()).unwrap()
            }
            Err(_) => prompt.images[0].clone(),
        };
        assert_eq!(patches.normalised(normalisation), pixels, "pixel values of example {index}");
        let differences: Vec<u8> =
            patches.bytes.iter().zip(prompt.images[0].bytes.iter()).map(|(a, b)| a.abs_diff(*b)).collect();
        let over_two = differences.iter().filter(|&&d| d > 2).count();
        assert!(over_two * 200 <= differences.len() && differences.iter().all(|&d| d <= 16));
    }
}

#[test]
fn case_36_every_layout_decodes_as_load_image_does() {
    let golden = golden();
    let cases = golden["images"].as_array().unwrap();
    assert!(cases.len() > 30);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let image = decode_image(&hex(case["file"].as_str().unwrap()), Path::new(name)).unwrap();
        assert_eq!(
            (image.width as u64, image.height as u64),
            (case["width"].as_u64().unwrap(), case["height"].as_u64().unwrap()),
            "{name}"
        );
        let rgb = hex(case["rgb"].as_str().unwrap());
        let limit = if name.ends_with(".jpg") { 4 } else { 0 };
        let worst = image.pixels.iter().zip(&rgb).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(image.pixels.len() == rgb.len() && worst <= limit, "{name}: differs by {worst}");
    }
}

/// One JPEG of `tools/reference/make_jpeg_golden.py` and its pixels by Pillow.
struct Jpeg {
    name: String,
    width: usize,
    height: usize,
    file: Vec<u8>,
    rgb: Vec<u8>,
}

fn jpegs() -> Vec<Jpeg> {
    let mut rest: &[u8] = include_bytes!("../../tests/golden/jpeg.bin");
    let mut take = |n: usize| {
        let (head, tail) = rest.split_at(n);
        rest = tail;
        head.to_vec()
    };
    let count = u32::from_le_bytes(take(4).try_into().unwrap());
    (0..count)
        .map(|_| {
            let [name, width, height, file] =
                [(); 4].map(|()| u32::from_le_bytes(take(4).try_into().unwrap()) as usize);
            let name = String::from_utf8(take(name)).unwrap();
            Jpeg { name, width, height, file: take(file), rgb: take(width * height * 3) }
        })
        .collect()
}

/// At most 0.5 % of the bytes more than 2 levels from libjpeg-turbo's, none more than 16: with noise for chroma, sides
/// that end inside a block, every subsampling, and the colour models that only the markers tell.
#[test]
fn case_36_jpegs_decode_within_rounding_of_pillow() {
    let jpegs = jpegs();
    assert!(jpegs.len() >= 15);
    for Jpeg { name, width, height, file, rgb } in jpegs {
        let image = decode_image(&file, Path::new(&name)).unwrap();
        assert_eq!((image.width, image.height, image.pixels.len()), (width, height, rgb.len()), "{name}");
        let apart: Vec<u8> = image.pixels.iter().zip(&rgb).map(|(a, b)| a.abs_diff(*b)).collect();
        let over_two = apart.iter().filter(|&&d| d > 2).count();
        let worst = apart.iter().max().unwrap();
        assert!(over_two * 200 <= apart.len() && *worst <= 16, "{name}: {over_two} over 2, worst {worst}");
    }
}

#[test]
fn case_33_damaged_jpegs_are_content_errors_or_pictures() {
    for Jpeg { name, width, height, mut file, .. } in jpegs() {
        for length in (2..file.len()).step_by(23).chain([file.len() - 2]) {
            let error = decode_image(&file[..length], Path::new("cut.jpg")).unwrap_err();
            assert!(
                error.exit_code() == 65 && error.to_string().contains("cut.jpg"),
                "{name} cut at {length}: {error}"
            );
        }
        // Scan data only: a changed frame header would be another picture's.
        let scan = file.windows(2).position(|pair| pair == [0xff, 0xda]).unwrap();
        for position in (scan..file.len()).step_by(11) {
            file[position] ^= 1 << (position % 8);
            match decode_image(&file, Path::new("bent.jpg")) {
                Ok(image) => assert_eq!((image.width, image.height), (width, height), "{name}"),
                Err(error) => assert_eq!(error.exit_code(), 65, "{name}: {error}"),
            }
        }
    }
}

#[test]
fn case_41_chats_have_the_ids_of_transformers_with_control_tokens_as_text() {
    let processor = processor();
    for case in golden()["chats"].as_array().unwrap() {
        let sample = sample(&case["messages"], vec![]);
        let encoded = processor.encode_messages(&sample.messages, true).unwrap();
        let expected: Vec<u32> =
            case["ids"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect();
        assert_eq!(encoded.ids, expected, "{}", case["name"]);
        assert_eq!(
            processor.tokenizer().decode(&encoded.ids, false).unwrap(),
            encoded.text.replace("e\u{301}", "é").replace('\u{212b}', "Å")
        );
    }
}

#[test]
fn case_41_text_split_over_parts_cannot_forge_a_control_token() {
    let processor = processor();
    let messages = serde_json::json!([{"role": "user", "content": [
        {"type": "text", "text": "<|im_"}, {"type": "text", "text": "end|>"}, {"type": "image"}, {"type": "text", "text": "<|image_pad|"},
        {"type": "text", "text": ">"},
    ]}]);
    let prompt = processor.encode(&sample(&messages, vec![png(30, 30)]), true).unwrap();
    assert!(
        prompt.text.contains("<|im_end|><|vision_start|><|image_pad|><|vision_end|><|image_pad|><|im_end|>")
    );
    // The template's: the system turn's and the user's. 56 x 56 pixels make 2 x 2 merged tokens.
    assert_eq!(prompt.tokens.iter().filter(|&&id| id == 501).count(), 2);
    assert_eq!(prompt.tokens.iter().filter(|&&id| id == 511).count(), 4);
}

#[test]
fn completion_and_prompt_add_up_to_the_conversation() {
    let processor = processor();
    for answer in ["<answer> 3 </answer>", "", " seven<|im_end|> more", "\n\nleading", "é\n"] {
        let mut conversation = sample(
            &serde_json::json!([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": answer}]}]),
            vec![png(60, 30)],
        );
        let (prompt, completion) = processor.encode_with_completion(&conversation).unwrap();
        let whole = processor.encode(&conversation, false).unwrap();
        conversation.messages.pop();
        assert_eq!(prompt, processor.encode(&conversation, true).unwrap());
        assert_eq!(completion.iter().filter(|&&id| id == 501).count(), 1);
        assert_eq!(completion.last(), Some(&501));
        assert_eq!(processor.tokenizer().decode(&completion, true).unwrap(), answer);
        let joined = [prompt.tokens.clone(), completion].concat();
        if answer.starts_with('\n') {
            // Here the break merges with the generation prompt's; the decoded text is the same all the same.
            let decode = |ids: &[u32]| processor.tokenizer().decode(ids, false).unwrap();
            assert!(decode(&whole.tokens).starts_with(&decode(&joined)));
        } else {
            assert_eq!(whole.tokens[..joined.len()], joined);
        }
    }
}

#[test]
fn samples_that_do_not_fit_are_refused_by_row() {
    let processor = processor();
    let shows =
        |messages: &str, images: Vec<ImageSource>| sample(&serde_json::from_str(messages).unwrap(), images);
    let image_message = r#"[{"role":"user","content":[{"type":"image"}]}]"#;
    let text_message = r#"[{"role":"user","content":"x"}]"#;
    let fails = |sample: &Sample| processor.encode(sample, true).unwrap_err();
    assert_eq!(
        fails(&shows(image_message, vec![])).to_string(),
        "row 4: a message shows image 0, but the row has 0 images"
    );
    assert!(fails(&shows(text_message, vec![png(9, 9)])).to_string().contains("no message shows image 0"));
    assert!(fails(&shows(image_message, vec![png(1, 201)])).to_string().contains("row 4: image of 1 x 201"));
    let absent = fails(&shows(image_message, vec![ImageSource::File("absent.png".into())]));
    assert_eq!(absent.exit_code(), 66);

    let broken = fails(&shows(image_message, vec![ImageSource::Bytes(Arc::from(*b"GIF89a"))]));
    assert!(broken.to_string().starts_with("row 4, image 0: GIF is not supported"), "{broken}");

    let last_is_user = processor.encode_with_completion(&shows(text_message, vec![])).unwrap_err();
    assert!(last_is_user.to_string().contains("the last role is user"));

    let folder = tempfile::tempdir().unwrap();
    let template = folder.path().join("t.jinja");
    std::fs::write(&template, "no placeholder").unwrap();
    let options = ProcessorOptions { chat_template_path: Some(template), ..Default::default() };
    let processor = Processor::load(&bundle(), &options).unwrap();
    let error = processor.encode(&shows(image_message, vec![png(9, 9)]), true).unwrap_err();
    assert!(error.to_string().contains("0 image placeholders for 1 images"), "{error}");
    let answered = shows(r#"[{"role":"user","content":"x"},{"role":"assistant","content":"y"}]"#, vec![]);
    let error = processor.encode_with_completion(&answered).unwrap_err();
    assert!(error.to_string().contains("supervised training"), "{error}");
}

#[test]
fn options_override_the_folder() {
    let options = ProcessorOptions {
        max_pixels: Some(60 * 60),
        chat_template_kwargs: serde_json::from_str(r#"{"add_vision_id": true}"#).unwrap(),
        ..Default::default()
    };
    let processor = Processor::load(&bundle(), &options).unwrap();
    let messages = serde_json::json!([{"role": "user", "content": [{"type": "image"}]}]);
    let prompt = processor.encode(&sample(&messages, vec![png(300, 300)]), true).unwrap();
    assert_eq!(prompt.images[0].grid_thw, [1, 4, 4]);
    assert!(prompt.text.contains("Picture 1: "));
    let options = ProcessorOptions { min_pixels: Some(1 << 30), ..Default::default() };
    assert_eq!(Processor::load(&bundle(), &options).unwrap_err().exit_code(), 2);
}

/// Why a file is refused; at once, in one line, with the name.
fn refused(bytes: &[u8]) -> String {
    let mut error = None;
    let is_fast = |_| {
        let start = std::time::Instant::now();
        error = decode_image(bytes, Path::new("bad.png")).err();
        start.elapsed().as_millis() < 100
    };
    // Other work may be going on.
    let fast = (0..5).any(is_fast);
    let error = error.unwrap();
    assert_eq!(error.exit_code(), 65);
    let text = error.to_string();
    assert!(fast, "{text}");
    assert!(text.starts_with("bad.png: ") && !text.contains('\n'), "{text}");
    text
}

/// A JPEG of the bundle that claims another size.
fn jpeg_of_size(width: u16, height: u16) -> Vec<u8> {
    let mut jpeg = std::fs::read(bundle().join("images/1.jpg")).unwrap();
    let frame = jpeg.windows(2).position(|pair| pair[0] == 0xff && (0xc0..=0xc2).contains(&pair[1])).unwrap();
    jpeg[frame + 5..frame + 7].copy_from_slice(&height.to_be_bytes());
    jpeg[frame + 7..frame + 9].copy_from_slice(&width.to_be_bytes());
    jpeg
}

/// A WebP file of the given chunks.
fn webp(chunks: &[(&[u8; 4], &[u8])]) -> Vec<u8> {
    let mut body = b"WEBP".to_vec();
    for (name, data) in chunks {
        body.extend_from_slice(*name);
        body.extend((data.len() as u32).to_le_bytes());
        body.extend_from_slice(data);
        body.extend(vec![0; data.len() % 2]);
    }
    [b"RIFF", &(body.len() as u32).to_le_bytes()[..], &body].concat()
}

#[test]
fn case_34_hostile_images_are_refused_at_once_with_the_reason() {
    assert!(refused(&png_header(60_000, 60_000)).contains("60000 x 60000"));
    assert!(refused(&png_header(16_384, 16_384)).contains("bytes decoded"));
    assert!(refused(&jpeg_of_size(60_000, 60_000)).contains("60000 x 60000"));
    assert!(refused(&jpeg_of_size(16_384, 16_384)).contains("bytes decoded"));
    // 14 bits of each side less one, and the version: what lossless data begins with. 24 bits of each in an extended header.
    let lossless: Vec<u8> = [&[0x2f, 0xfe, 0xbf, 0xff, 0x0f][..], &[0; 64]].concat();
    assert!(
        refused(&webp(&[(b"VP8L", &lossless)])).contains("bytes decoded"),
        "{}",
        refused(&webp(&[(b"VP8L", &lossless)]))
    );
    let extended = [&[0u8; 4][..], &59_999u32.to_le_bytes()[..3], &59_999u32.to_le_bytes()[..3]].concat();
    refused(&webp(&[(b"VP8X", &extended), (b"VP8L", &lossless)]));
    // A scan for each ten bytes: minutes for a picture of 16 megapixels, nothing for a small one.
    let scans = |mut jpeg: Vec<u8>| {
        let at = jpeg.windows(2).position(|pair| pair == [0xff, 0xda]).unwrap();
        let end = at + 2 + usize::from(u16::from_be_bytes([jpeg[at + 2], jpeg[at + 3]]));
        let header = jpeg[at..end].repeat(300);
        jpeg.truncate(at);
        [jpeg, header].concat()
    };
    assert!(refused(&scans(jpeg_of_size(4096, 4096))).contains("300 scans are too many"));
    assert!(!refused(&scans(jpeg_of_size(16, 16))).contains("too many"));
}

#[test]
fn case_37_other_formats_are_named() {
    for (start, name) in [
        (&b""[..], "an empty file is not supported"),
        (b"GIF89a\x01\0\x01\0", "GIF is not supported as an image; convert it to png, jpeg or webp"),
        (b"BM\0\0\0\0", "BMP"),
        (b"II*\0\x08\0\0\0", "TIFF"),
        (b"MM\0*\0\0\0\x08", "TIFF"),
        (b"\0\0\0\x20ftypavif", "AVIF"),
        (b"\0\0\0\x20ftypavis", "AVIF"),
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"\0\0\0\x18ftypmif1", "HEIC"),
        (b"\0\0\0\x18ftypisom", "a video or HEIF file"),
        (b"\0\0\0\x0cJXL \x0d\x0a\x87\x0a", "JPEG XL"),
        (b"<svg xmlns=", "SVG is"),
        (b"<?xml version='1.0'?><svg", "SVG, HTML or XML text"),
        (b"\xEF\xBB\xBF\r\n<!doctype HTML><p>", "HTML text is not supported"),
        (b"%PDF-1.7", "PDF"),
        (
            b"version https://git-lfs.github.com/spec/v1",
            "a Git LFS pointer is not supported as an image; fetch the file",
        ),
        (b"plain text", "an unknown format"),
    ] {
        let text = refused(start);
        assert!(text.contains(name), "{text}");
    }
}

#[test]
fn case_33_cut_images_are_broken() {
    let ImageSource::Bytes(whole) = png(40, 40) else { panic!("png() gives bytes") };
    assert!(refused(&whole[..whole.len() / 2]).contains("broken PNG image"));
    assert!(refused(&whole[..8]).contains("broken PNG image"), "{}", refused(&whole[..8]));
    let jpeg = std::fs::read(bundle().join("images/1.jpg")).unwrap();
    assert!(refused(&jpeg[..100]).contains("broken JPEG image"));
    assert!(refused(&jpeg[..4]).ends_with("; replace the file"), "{}", refused(&jpeg[..4]));
    assert!(refused(&webp(&[])).contains("broken WebP image"), "{}", refused(&webp(&[])));
}

/// Signature and header of an RGB PNG, then the start of its data.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut header = b"IHDR".to_vec();
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    let mut crc = !0u32;
    for &byte in &header {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
        }
    }
    [
        &b"\x89PNG\r\n\x1a\n\0\0\0\r"[..],
        &header,
        &(!crc).to_be_bytes(),
        b"\0\0\0\x04IDAT\x78\x9c\x03\x00\0\0\0\0",
    ]
    .concat()
}

#[cfg(unix)]
#[test]
fn pipes_and_folders_are_not_images() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe.png");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for path in [pipe, PathBuf::from("/dev/zero")] {
        let error = load_image(&ImageSource::File(path), "").unwrap_err();
        assert!(error.to_string().contains("found a pipe, socket or device"), "{error}");
    }
    let error = load_image(&ImageSource::File(folder.path().into()), "").unwrap_err();
    assert!(error.to_string().contains("found a folder"), "{error}");
}

#[test]
fn one_processor_serves_many_threads() {
    fn shared<T: Send + Sync>(_: &T) {}
    let processor = processor();
    shared(&processor);
    let messages =
        serde_json::json!([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]);
    let sample = sample(&messages, vec![ImageSource::File(bundle().join("images/0.png"))]);
    let alone = processor.encode(&sample, true).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(processor.encode(&sample, true).unwrap(), alone));
        }
    });
}

/// Files with a few bytes changed, always the same ones: an error or a result, never a panic.
#[test]
fn mutated_files_give_errors_not_panics() {
    let mut state = 99u64;
    let mut next = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize % below
    };
    let tokenizer = std::fs::read(bundle().join("tokenizer.json")).unwrap();
    let mut broken = 0;
    for _ in 0..200 {
        let mut bytes = tokenizer.clone();
        let at = next(bytes.len());
        match next(3) {
            0 => bytes[at] = b"0123456789{}[],\":ntf-"[next(21)],
            1 => drop(bytes.drain(at..(at + next(60)).min(tokenizer.len()))),
            _ => bytes.insert(at, b"\"{,"[next(3)]),
        }
        match Tokenizer::from_json(&bytes, Path::new("tokenizer.json")) {
            Ok(tokenizer) => drop(tokenizer.encode("hello <|im_end|> 123\n")),
            Err(_) => broken += 1,
        }
    }
    assert!(broken > 100);
    for case in golden()["images"].as_array().unwrap() {
        let file = hex(case["file"].as_str().unwrap());
        for _ in 0..50 {
            let mut bytes = file.clone();
            for _ in 0..=next(4) {
                let at = next(bytes.len());
                bytes[at] = next(256) as u8;
            }
            if let Ok(image) = decode_image(&bytes, Path::new("image")) {
                assert_eq!(image.pixels.len(), image.width * image.height * 3);
            }
        }
    }
}
