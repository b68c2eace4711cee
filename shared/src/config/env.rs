//! `${NAME}` in configured texts.

use super::source::{Source, Text, TextPlaces, characters};
use std::ops::Range;

/// Where `${NAME}` comes from: the process's environment, or a test's.
pub type Environment<'e> = dyn Fn(&str) -> Option<String> + 'e;

/// The TOML string at `span` with each `${NAME}` replaced from `env` and each `$${` made `${`.
///
/// A variable that is not set, or text behind `${` that is no name, is noted as an error at its place and left as it
/// stands. A value is taken as it is: what looks like `${…}` in it is not replaced again.
pub(super) fn substitute(value: &str, span: &Range<usize>, source: &Source<'_>, env: &Environment<'_>) -> Text {
    let (characters, end) = characters(value, span, source.text);
    let mut out = String::with_capacity(value.len());
    let mut offsets = Vec::with_capacity(characters.len() + 1);
    let mut substituted = false;
    let mut i = 0;
    while i < characters.len() {
        let (character, offset) = characters[i];
        let following = |n: usize| characters.get(i + n).map(|(c, _)| *c);
        if character == '$' && following(1) == Some('$') && following(2) == Some('{') {
            out.push_str("${");
            offsets.extend([offset, characters[i + 2].1]);
            i += 3;
            continue;
        }
        if character == '$' && following(1) == Some('{') {
            let rest = &characters[i + 2..];
            let name: String = rest.iter().map(|(c, _)| *c).take_while(|c| *c != '}').collect();
            let closed = rest.len() > name.chars().count();
            let valid = !name.is_empty()
                && !name.starts_with(|c: char| c.is_ascii_digit())
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            if !closed || !valid {
                source.error(
                    offset,
                    "`${` begins a reference to an environment variable, as in `${NAME}`; write `$${` for the text `${`",
                );
            } else if let Some(found) = env(&name) {
                offsets.extend(found.chars().map(|_| offset));
                out.push_str(&found);
                substituted = true;
                i += name.chars().count() + 3;
                continue;
            } else {
                source.error(
                    offset,
                    format!(
                        "environment variable `{name}` is not set; set it, or write `$${{{name}}}` for the text itself"
                    ),
                );
            }
        }
        out.push(character);
        offsets.push(offset);
        i += 1;
    }
    offsets.push(end);
    let places = TextPlaces::new(&out, &offsets, source);
    Text { value: out, span: span.clone(), places, substituted }
}
