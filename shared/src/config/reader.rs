//! Reads one section: values by key, each problem noted at its place, and at last the keys that nobody knows.

use std::ops::Range;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Place;
use super::env::{Environment, substitute};
use super::keys::{Key, SECTIONS, Section, Value};
use super::source::{Source, Text};
use super::units;

/// What a section is read with.
#[derive(Clone, Copy)]
pub(super) struct Context<'s, 't> {
    pub(super) source: &'s Source<'t>,
    pub(super) env: &'s Environment<'s>,
}

/// One section of the file; absent sections are read as empty ones.
pub(super) struct Reader<'s, 't, 'd> {
    context: Context<'s, 't>,
    section: &'static Section,
    /// As in the file: `[stream.github]`.
    title: String,
    /// Where the section's name stands.
    pub(super) at: usize,
    table: Option<&'d DeTable<'t>>,
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Found<T> {
    pub(super) value: T,
    /// Byte offset of the value, or of the section's name for a default.
    pub(super) at: usize,
}

impl<'s, 't, 'd> Reader<'s, 't, 'd> {
    /// Unknown keys are noted at once.
    pub(super) fn new(
        context: Context<'s, 't>,
        section: &'static Section,
        name: Option<&str>,
        at: usize,
        table: Option<&'d DeTable<'t>>,
    ) -> Self {
        let title = match name {
            Some(name) => format!("[{}.{name}]", section.name),
            None if section.name.is_empty() => "the top of the file".to_owned(),
            None => format!("[{}]", section.name),
        };
        Self { context, section, title, at, table }
    }

    /// Notes each key that is not among the section's.
    pub(super) fn refuse_unknown(&self) {
        for (key, _) in self.table.into_iter().flat_map(|table| table.iter()) {
            if !self.section.keys.iter().any(|known| known.name == key.get_ref().as_ref()) {
                let known = self.section.keys.iter().map(|known| known.name);
                self.context.source.error(key.span().start, unknown_key(key.get_ref(), &self.title, known));
            }
        }
    }

    pub(super) fn error(&self, at: usize, message: impl Into<String>) {
        self.context.source.error(at, message);
    }

    pub(super) fn error_at(&self, place: Place, message: impl Into<String>) {
        self.context.source.error_at(place, message);
    }

    fn known(&self, name: &str) -> &'static Key {
        let key = self.section.keys.iter().find(|key| key.name == name);
        key.expect("only keys of the section's list are read")
    }

    /// The value as it stands in the file; a required one that is missing is noted at the section's name.
    pub(super) fn raw(&self, name: &str) -> Option<&'d Spanned<DeValue<'t>>> {
        let known = self.known(name);
        let value = self.table.and_then(|table| table.get(name));
        if let (None, Value::Required(example)) = (value, &known.value) {
            self.error(self.at, format!("{} lacks `{name}`, as in `{name} = {example}`", self.title));
        }
        value
    }

    pub(super) fn is_given(&self, name: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(name))
    }

    /// Notes that `name` has a value of the wrong type.
    fn wrong_type(&self, name: &str, expected: &str, value: &Spanned<DeValue<'_>>) {
        let found = value.get_ref().type_str();
        self.error(
            value.span().start,
            format!("`{name}` must be {expected}, not {found}", found = with_article(found)),
        );
    }

    /// A text of the file, with `${NAME}` replaced.
    pub(super) fn text(&self, name: &str) -> Option<Text> {
        let value = self.raw(name)?;
        let Some(text) = value.get_ref().as_str() else {
            self.wrong_type(name, "a text in quotes", value);
            return None;
        };
        Some(self.substituted(text, &value.span()))
    }

    pub(super) fn substituted(&self, text: &str, span: &Range<usize>) -> Text {
        substitute(text, span, self.context.source, self.context.env)
    }

    /// A text that `parse` understands, or the default.
    pub(super) fn parsed<T, E: std::fmt::Display>(
        &self,
        name: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<Found<T>> {
        if !self.is_given(name) {
            let default = self.known(name).default_text();
            if default.is_none() {
                // A missing required key is noted there.
                self.raw(name);
            }
            let value = parse(default?).ok().expect("defaults are tested to parse");
            return Some(Found { value, at: self.at });
        }
        let text = self.text(name)?;
        match parse(&text.value) {
            Ok(value) => Some(Found { value, at: text.span.start }),
            Err(error) => {
                self.error(text.span.start, format!("`{name}`: {error}"));
                None
            }
        }
    }

    pub(super) fn duration(&self, name: &str, least: Duration) -> Option<Duration> {
        let parse = |text: &str| {
            let duration = units::parse_duration(text)?;
            if duration < least { Err(format!("`{text}` is less than {least:?}")) } else { Ok(duration) }
        };
        self.parsed(name, parse).map(|found| found.value)
    }

    pub(super) fn size(&self, name: &str, least: u64) -> Option<u64> {
        let parse = |text: &str| {
            let size = units::parse_size(text)?;
            if size < least { Err(format!("`{text}` is less than {least} bytes")) } else { Ok(size) }
        };
        self.parsed(name, parse).map(|found| found.value)
    }

    /// A whole number within `range`, also as a text that came from the environment.
    pub(super) fn number(&self, name: &str, range: std::ops::RangeInclusive<i64>) -> Option<Found<i64>> {
        let parse = |text: &str| match text.trim().parse::<i64>() {
            Ok(number) if range.contains(&number) => Ok(number),
            _ => Err(format!("`{text}` is not a whole number from {} to {}", range.start(), range.end())),
        };
        let Some(value) = self.table.and_then(|table| table.get(name)) else {
            return self.parsed(name, parse);
        };
        let at = value.span().start;
        let parsed = match value.get_ref() {
            DeValue::Integer(integer) => match i64::from_str_radix(integer.as_str(), integer.radix()) {
                Ok(number) => parse(&number.to_string()),
                Err(_) => parse(&integer.to_string()),
            },
            DeValue::String(text) => {
                let text = self.substituted(text, &value.span());
                if !text.substituted {
                    self.wrong_type(name, "a whole number without quotes", value);
                    return None;
                }
                parse(&text.value)
            }
            _ => {
                self.wrong_type(name, "a whole number", value);
                return None;
            }
        };
        parsed.map_err(|error| self.error(at, format!("`{name}`: {error}"))).ok().map(|value| Found { value, at })
    }

    /// `true` or `false`, also as a text that came from the environment.
    pub(super) fn boolean(&self, name: &str) -> Option<bool> {
        let parse = |text: &str| text.trim().parse::<bool>().map_err(|_| format!("`{text}` is neither true nor false"));
        match self.table.and_then(|table| table.get(name)) {
            Some(value) => match value.get_ref() {
                DeValue::Boolean(flag) => Some(*flag),
                DeValue::String(text) if self.substituted(text, &value.span()).substituted => {
                    self.parsed(name, parse).map(|found| found.value)
                }
                _ => {
                    self.wrong_type(name, "true or false", value);
                    None
                }
            },
            None => self.parsed(name, parse).map(|found| found.value),
        }
    }

    /// One of `choices`; another word is noted with the nearest of them.
    pub(super) fn choice<T: Copy>(&self, name: &str, choices: &[(&'static str, T)]) -> Option<Found<T>> {
        self.parsed(name, |text| {
            choices.iter().find(|(word, _)| *word == text).map(|(_, choice)| *choice).ok_or_else(|| {
                let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
                let nearest = nearest(text, words.iter().copied()).unwrap_or_default();
                format!("`{text}` is none of {}; did you mean `{nearest}`?", words.join(", "))
            })
        })
    }
}

/// The message for a key that nobody knows; it names the nearest known one, and the section that has it, if another does.
pub(super) fn unknown_key(key: &str, title: &str, known: impl Iterator<Item = &'static str>) -> String {
    let elsewhere = SECTIONS.iter().find(|section| {
        let here = format!("[{}", section.name);
        !section.name.is_empty() && !title.starts_with(&here) && section.keys.iter().any(|k| k.name == key)
    });
    match (nearest(key, known), elsewhere) {
        (nearest, Some(section)) if nearest.is_none_or(|nearest| strsim::damerau_levenshtein(key, nearest) > 2) => {
            let name = if section.named { ".NAME" } else { "" };
            format!("unknown key `{key}` in {title}; did you mean `{key}` of [{}{name}]?", section.name)
        }
        (Some(nearest), _) => format!("unknown key `{key}` in {title}; did you mean `{nearest}`?"),
        (None, _) => format!("unknown key `{key}` in {title}"),
    }
}

/// The candidate that differs from `word` in the fewest letters; among equals the first.
pub fn nearest<'c>(word: &str, candidates: impl Iterator<Item = &'c str>) -> Option<&'c str> {
    let word = word.to_lowercase();
    candidates.min_by_key(|candidate| strsim::damerau_levenshtein(&word, &candidate.to_lowercase()))
}

fn with_article(type_name: &str) -> String {
    let article = if type_name.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {type_name}")
}
