use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::de::IgnoredAny;

use super::*;

fn is_json(text: &str) -> bool {
    let mut scanner = Scanner::new(text);
    scanner.skip(&mut vec![]).and_then(|()| scanner.end()).is_ok()
}

fn check_error(text: &str, message: &str) {
    let mut scanner = Scanner::new(text);
    let fault = scanner.skip(&mut vec![]).and_then(|()| scanner.end()).expect_err(text).message();
    assert!(fault.starts_with("not JSON: ") && fault.contains(message), "{text:?}: {fault}");
}

#[test]
fn mistakes_are_told_with_their_place() {
    check_error("", "expected a value at byte 0, found the end");
    check_error("   ", "expected a value at byte 3, found the end");
    check_error("{} {}", "expected nothing more behind the value at byte 3, found `{}`");
    check_error("{\"a\":1", "expected `,` or `}` at byte 6, found the end");
    check_error("{\"a\" 1}", "expected `:` at byte 5, found `1}`");
    check_error("{a:1}", "expected a field's name in double quotes at byte 1");
    check_error("{\"a\":1,}", "expected a field's name in double quotes at byte 7");
    check_error("[1,]", "expected a value at byte 3");
    check_error("[1 2]", "expected `,` or `]` at byte 3");
    check_error("'a'", "expected a value at byte 0");
    check_error("\"a\nb\"", "expected control characters in a string to be escaped at byte 2");
    check_error("\"a", "expected the string to end at byte 2");
    check_error("\"\\x\"", "expected an escape that JSON knows at byte 1");
    check_error("\"\\u12\"", "expected an escape that JSON knows at byte 1");
    check_error("nul", "expected a value at byte 0");
    check_error("truex", "expected a value at byte 0");
    check_error("NaN", "expected a value at byte 0");
    check_error("\u{feff}{}", "expected a value at byte 0, found `\\u{feff}{}`");
    for number in ["01", "-", "+1", "1.", ".5", "1e", "1e+", "0x10", "1_000", "--1", "1.2.3", "-a", "Infinity"] {
        check_error(number, "at byte 0");
    }
}

#[test]
fn nesting_is_bounded_by_nothing() {
    let depth = 1_000_000;
    assert!(is_json(&format!("{}{}", "[".repeat(depth), "]".repeat(depth))));
    assert!(is_json(&format!("{}1{}", "{\"a\":[".repeat(depth), "]}".repeat(depth))));
    assert!(!is_json(&"[".repeat(depth)));
    assert!(!is_json(&"{\"a\":".repeat(depth)));
}

#[test]
fn strings_are_unescaped() {
    fn check(text: &str, want: Result<&str, LoneSurrogate>) {
        let string = Scanner::new(text).string().unwrap();
        assert_eq!(string.unescape(&mut String::new()), want, "{text}");
    }
    check(r#""""#, Ok(""));
    check(r#""plain é 日本 😀 longer than eight bytes""#, Ok("plain é 日本 😀 longer than eight bytes"));
    check(r#""\"\\\/\b\f\n\r\t""#, Ok("\"\\/\u{8}\u{c}\n\r\t"));
    check(r#""a\u0000b\u00e9\uD83D\uDE00c""#, Ok("a\0bé😀c"));
    check(r#""\ud83d""#, Err(LoneSurrogate));
    check(r#""\ude00""#, Err(LoneSurrogate));
    check(r#""\ud83dx""#, Err(LoneSurrogate));
    check(r#""\ud83d\n""#, Err(LoneSurrogate));
    check(r#""\ud83d\ud83d""#, Err(LoneSurrogate));
    check(r#""\ude00\ud83d""#, Err(LoneSurrogate));
}

/// What is JSON, and what a string says, agrees with `serde_json` on texts that are nearly JSON.
#[test]
fn the_scanner_agrees_with_serde_json() {
    const PIECES: [&str; 40] = [
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "\\",
        "\"a\"",
        "\"b\":",
        "{}",
        "[]",
        "null",
        "true",
        "false",
        "0",
        "-1",
        "1.5",
        "1e5",
        "1E-7",
        "00",
        ".",
        "e",
        "-",
        "\\u00e9",
        "\\ud83d",
        "\\ude00",
        "\\n",
        "\\/",
        "é",
        "😀",
        "\n",
        " ",
        "\t",
        "\u{1}",
        "\u{7f}",
        "\"abcdefgh\"",
        "\"long enough for words \\\" of eight\"",
        "\u{a0}",
        "x",
    ];
    let seed = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut accepted = 0;
    for _ in 0..60_000 {
        let mut text = String::new();
        if rng.random_bool(0.5) {
            // Valid to begin with, then with some pieces put in or a part cut out.
            super::super::tests::random::json(&mut rng, 3, &mut text);
            for _ in 0..rng.random_range(0..3) {
                let mut at = rng.random_range(0..=text.len());
                while !text.is_char_boundary(at) {
                    at -= 1;
                }
                if rng.random_bool(0.7) {
                    text.insert_str(at, PIECES[rng.random_range(0..PIECES.len())]);
                } else {
                    text.truncate(at);
                }
            }
        } else {
            for _ in 0..rng.random_range(0..8) {
                text.push_str(PIECES[rng.random_range(0..PIECES.len())]);
            }
        }
        let theirs = serde_json::from_str::<IgnoredAny>(&text).is_ok();
        assert_eq!(is_json(&text), theirs, "seed {seed}: {text:?}");
        accepted += u32::from(theirs);
        if theirs && text.trim_start().starts_with('"') {
            let mut scanner = Scanner::new(&text);
            scanner.peek();
            let string = scanner.string().unwrap();
            let mine = string.unescape(&mut String::new()).ok().map(str::to_owned);
            assert_eq!(mine, serde_json::from_str(&text).ok(), "seed {seed}: {text:?}");
        }
    }
    assert!(accepted > 1_000, "seed {seed}: only {accepted} were JSON");
}
