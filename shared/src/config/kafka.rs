//! `[kafka]`: librdkafka's own keys, handed through; and what of its security keys can be told to be wrong beforehand.

use std::collections::BTreeMap;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use toml::de::{DeTable, DeValue};

use super::KafkaConfig;
use super::reader::Reader;

/// How to come by what this build lacks.
const BUILD_WITH_TLS: &str =
    "this program was built without TLS: build it with `--features tls`, which takes OpenSSL's headers and pkg-config";

/// Reads `table`, the section of `reader`. `None` only if an error has been noted.
pub(super) fn kafka<'t>(reader: &Reader<'_, 't, '_>, table: Option<&DeTable<'t>>) -> Option<KafkaConfig> {
    let mut given = BTreeMap::new();
    flatten(reader, "", table?, &mut given);
    check_login(reader, &given);
    if given.contains_key("bootstrap.servers") {
        let properties = given.into_iter().map(|(name, property)| (name, property.text)).collect();
        return Some(KafkaConfig { properties });
    }
    if !reader.is_given("bootstrap_servers") {
        // Notes that it is missing.
        reader.raw("bootstrap_servers");
    }
    None
}

/// A property as it stands in the file.
struct Property {
    text: String,
    at: usize,
}

type Properties = BTreeMap<String, Property>;

/// Notes librdkafka's keys; without quotes `security.protocol` is a nested table in TOML, which comes to the same.
fn flatten<'t>(reader: &Reader<'_, 't, '_>, prefix: &str, table: &DeTable<'t>, properties: &mut Properties) {
    for (key, value) in table {
        let at = key.span().start;
        let name = match (prefix, key.get_ref().as_ref()) {
            ("", "bootstrap_servers") => "bootstrap.servers".to_owned(),
            ("", key) => key.to_owned(),
            (prefix, key) => format!("{prefix}.{key}"),
        };
        let text = match value.get_ref() {
            DeValue::Table(nested) => {
                flatten(reader, &name, nested, properties);
                continue;
            }
            DeValue::String(text) => reader.substituted(text, &value.span()).value,
            DeValue::Integer(integer) if integer.radix() == 10 => integer.as_str().to_owned(),
            DeValue::Float(float) => float.as_str().to_owned(),
            DeValue::Boolean(flag) => flag.to_string(),
            other => {
                let message = format!("`{name}` must be a text, a number or a boolean, not {}", other.type_str());
                reader.error(value.span().start, message);
                continue;
            }
        };
        let mut client = ClientConfig::new();
        client.set(&name, &text);
        if let Err(error) = client.create_native_config() {
            let message = match error {
                // Not the whole error: it repeats the value, which may be a secret.
                KafkaError::ClientConfig(_, description, ..) => description,
                other => other.to_string(),
            };
            reader.error(at, format!("librdkafka refuses `{name}`: {}", explained(&message)));
        }
        if properties.insert(name.clone(), Property { text, at }).is_some() {
            reader.error(at, format!("`{name}` is given twice: as bootstrap_servers and under librdkafka's name"));
        }
    }
}

/// What librdkafka says of a value, and of one that is only not in this build what to do.
fn explained(message: &str) -> String {
    match message.contains("OpenSSL not available") {
        true => format!("{message}; {BUILD_WITH_TLS}"),
        false => message.to_owned(),
    }
}

/// A login that cannot succeed whatever the cluster says. librdkafka would only tell when it is to connect.
fn check_login(reader: &Reader<'_, '_, '_>, given: &Properties) {
    let text = |name: &str| given.get(name).map(|property| property.text.to_ascii_uppercase());
    let Some(protocol) = given.get("security.protocol") else { return };
    if !protocol.text.to_ascii_uppercase().starts_with("SASL_") {
        return;
    }
    let named = given.get("sasl.mechanism").or_else(|| given.get("sasl.mechanisms"));
    let at = named.unwrap_or(protocol).at;
    match named.map(|named| named.text.to_ascii_uppercase()).as_deref() {
        None => reader.error(
            at,
            "`security.protocol` asks for a login and `sasl.mechanism` does not say which: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512",
        ),
        Some("GSSAPI") => reader.error(
            at,
            "`sasl.mechanism`: GSSAPI (Kerberos) is not in this program; it has PLAIN, SCRAM-SHA-256 and SCRAM-SHA-512",
        ),
        Some(mechanism @ ("SCRAM-SHA-256" | "SCRAM-SHA-512" | "OAUTHBEARER")) if !cfg!(feature = "tls") => {
            reader.error(at, format!("`sasl.mechanism`: {mechanism} takes OpenSSL; {BUILD_WITH_TLS}"));
        }
        Some("PLAIN" | "SCRAM-SHA-256" | "SCRAM-SHA-512") => {
            for name in ["sasl.username", "sasl.password"] {
                if text(name).is_none_or(|text| text.is_empty()) {
                    reader.error(at, format!("`sasl.mechanism` needs `{name}` in [kafka], and that is not set"));
                }
            }
        }
        Some(_) => {}
    }
}
