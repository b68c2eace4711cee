//! One CSV row a record (RFC 4180).

use std::borrow::Cow;

use super::fault::{Fault, Result};

/// Splits a record into its fields and gives `field` the text of each, without quotes.
///
/// A field in quotes may hold delimiters, line ends and doubled quotes; a quote within a field that does not begin
/// with one is an ordinary character. One line end behind the last field is not part of it; a row that goes on behind a
/// line end is more than one row. Blanks are kept.
pub(super) fn split<'a>(text: &'a str, delimiter: u8, mut field: impl FnMut(Cow<'a, str>)) -> Result<()> {
    let bytes = text.as_bytes();
    let (mut at, mut number) = (0, 0);
    loop {
        let value = if bytes.get(at) == Some(&b'"') {
            let (value, end) = quoted(text, at + 1)?;
            at = end;
            value
        } else {
            let start = at;
            while bytes.get(at).is_some_and(|&b| b != delimiter && b != b'\n' && b != b'\r') {
                at += 1;
            }
            Cow::Borrowed(&text[start..at])
        };
        field(value);
        number += 1;
        match &bytes[at..] {
            [] | b"\n" | b"\r\n" | b"\r" => return Ok(()),
            [b, ..] if *b == delimiter => at += 1,
            [b'\n' | b'\r', ..] => return Err(Fault::record("not one CSV row: more follows behind the line's end")),
            _ => {
                let message = format!("not CSV: field {number} goes on behind its closing quote, at byte {at}");
                return Err(Fault::record(message));
            }
        }
    }
}

/// The field whose opening quote is just before `start`, and where it ends.
fn quoted(text: &str, start: usize) -> Result<(Cow<'_, str>, usize)> {
    let mut value = Cow::Borrowed("");
    let mut from = start;
    loop {
        let Some(quote) = text[from..].find('"').map(|i| from + i) else {
            return Err(Fault::record(format!("not CSV: the quote at byte {} is not closed", start - 1)));
        };
        let doubled = text.as_bytes().get(quote + 1) == Some(&b'"');
        let piece = &text[from..quote + usize::from(doubled)];
        if value.is_empty() {
            value = Cow::Borrowed(piece);
        } else {
            value.to_mut().push_str(piece);
        }
        if !doubled {
            return Ok((value, quote + 1));
        }
        from = quote + 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, fields: &[&str]) {
        let mut got = vec![];
        split(text, b',', |field| got.push(field.into_owned())).unwrap();
        assert_eq!(got, fields, "{text:?}");
    }

    fn check_error(text: &str, message: &str) {
        let fault = split(text, b',', |_| ()).expect_err(text).message();
        assert!(fault.contains(message), "{text:?}: {fault}");
    }

    #[test]
    fn fields_are_split_as_rfc_4180_says() {
        check("a,b", &["a", "b"]);
        check("", &[""]);
        check(",", &["", ""]);
        check("a,,b,", &["a", "", "b", ""]);
        check("\"2,499\",x", &["2,499", "x"]);
        check("\"say \"\"hi\"\"\"", &["say \"hi\""]);
        check("\"\"\"\"", &["\""]);
        check("\"\"\"a\",\"\"", &["\"a", ""]);
        check("\"two\nlines\",x", &["two\nlines", "x"]);
        check("5\" display,x", &["5\" display", "x"]);
        check(" a , b ", &[" a ", " b "]);
        check("a,b\n", &["a", "b"]);
        check("a,b\r\n", &["a", "b"]);
        check("a,\"b\"\r", &["a", "b"]);
        check("é,日本", &["é", "日本"]);
    }

    #[test]
    fn what_is_not_one_row_is_refused() {
        check_error("a,b\nc,d", "more follows");
        check_error("a,b\n\n", "more follows");
        check_error("a\rb", "more follows");
        check_error("\"a", "not closed");
        check_error("\"a\"\"", "not closed");
        check_error("x,\"a\"b", "field 2 goes on behind its closing quote, at byte 5");
        check_error("\"a\" ,b", "field 1 goes on");
    }
}
