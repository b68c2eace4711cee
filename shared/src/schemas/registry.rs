//! Asking a schema registry by Confluent's API.

use std::collections::BTreeSet;
use std::time::Duration;

use reqwest::StatusCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use url::Url;

use super::Error;
use crate::config::SchemaRegistryConfig;
use crate::decode::{SchemaId, WriterSchema};
use crate::storage::causes;

/// Schemas that one schema may refer to, however far.
const MOST_REFERENCES: usize = 1_000;
/// "Schema not found", in the body of a 404: another one comes from what isn't the registry.
const SCHEMA_NOT_FOUND: u64 = 40_403;
const ACCEPT: &str = "application/vnd.schemaregistry.v1+json, application/json";

#[derive(Debug, Clone)]
pub(super) struct Registry {
    http: reqwest::Client,
    config: SchemaRegistryConfig,
}

/// What a registry says of an id.
#[derive(Debug)]
pub(super) enum Answer {
    Found(WriterSchema),
    Unknown,
}

#[derive(Debug, Deserialize)]
struct Schema {
    schema: String,
    /// Left out of Avro's.
    #[serde(rename = "schemaType")]
    schema_type: Option<String>,
    #[serde(default)]
    references: Vec<Reference>,
}

/// A version of a subject that defines a type which the schema names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
struct Reference {
    subject: String,
    version: i64,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    error_code: u64,
    #[serde(default)]
    message: String,
}

impl Registry {
    pub(super) fn new(config: &SchemaRegistryConfig, timeout: Duration) -> Result<Self, Error> {
        let http = reqwest::Client::builder().timeout(timeout).connect_timeout(timeout).build();
        let http = http.map_err(|e| Error::Client(e.to_string()))?;
        Ok(Self { http, config: config.clone() })
    }

    /// # Errors
    /// If it does not answer, or not as a registry does.
    pub(super) async fn schema(&self, id: SchemaId) -> Result<Answer, Error> {
        let found: Schema = match self.get(&["schemas", "ids", &id.to_string()]).await? {
            Ok(found) => found,
            Err(refusal) if refusal.error_code == SCHEMA_NOT_FOUND => return Ok(Answer::Unknown),
            Err(refusal) => return Err(self.refused(&refusal)),
        };
        match found.schema_type.as_deref() {
            None | Some("AVRO") => {}
            Some(other) => return Ok(Answer::Found(WriterSchema::Other { schema_type: other.to_owned() })),
        }
        let references = self.references(found.references).await?;
        Ok(Answer::Found(WriterSchema::Avro { schema: found.schema, references }))
    }

    /// The schemas that are referred to, each behind those that it refers to itself.
    async fn references(&self, wanted: Vec<Reference>) -> Result<Vec<String>, Error> {
        enum Next {
            Fetch(Reference),
            Take(String),
        }
        let mut next: Vec<Next> = wanted.into_iter().rev().map(Next::Fetch).collect();
        let (mut seen, mut found) = (BTreeSet::new(), vec![]);
        while let Some(step) = next.pop() {
            let reference = match step {
                Next::Take(schema) => {
                    found.push(schema);
                    continue;
                }
                Next::Fetch(reference) => reference,
            };
            if !seen.insert(reference.clone()) {
                continue;
            }
            if seen.len() > MOST_REFERENCES {
                return Err(self.error(format!("a schema refers to more than {MOST_REFERENCES} others")));
            }
            let Reference { subject, version } = reference;
            let got: Result<Schema, Refusal> =
                self.get(&["subjects", &subject, "versions", &version.to_string()]).await?;
            let schema = got.map_err(|refusal| self.refused(&refusal))?;
            next.push(Next::Take(schema.schema));
            next.extend(schema.references.into_iter().rev().map(Next::Fetch));
        }
        Ok(found)
    }

    /// The answer, or a 404 in the registry's words.
    async fn get<T: DeserializeOwned>(&self, path: &[&str]) -> Result<Result<T, Refusal>, Error> {
        let mut url: Url = self.config.url.clone();
        url.path_segments_mut().expect("http URLs have paths").pop_if_empty().extend(path);
        // What was deleted softly is still what its records were written with.
        url.query_pairs_mut().append_pair("deleted", "true");
        let mut request = self.http.get(url).header("accept", ACCEPT);
        if let Some(user) = &self.config.user {
            request = request.basic_auth(user, self.config.password.as_ref());
        }
        let response = request.send().await.map_err(|e| self.error(chain(&e.without_url())))?;
        let status = response.status();
        let body = response.bytes().await.map_err(|e| self.error(chain(&e.without_url())))?;
        if status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN {
            let hint =
                "it refuses the login: check `schema_registry_user` and `schema_registry_password` of the stream";
            return Err(self.error(format!("{hint} ({status})")));
        }
        if status == StatusCode::NOT_FOUND
            && let Ok(refusal) = serde_json::from_slice::<Refusal>(&body)
        {
            return Ok(Err(refusal));
        }
        let not_one = |why: String| self.error(format!("{why}; is `schema_registry` of the stream its URL?"));
        if !status.is_success() {
            return Err(not_one(format!("it answers {status} to /{}", path.join("/"))));
        }
        serde_json::from_slice(&body)
            .map(Ok)
            .map_err(|e| not_one(format!("its answer to /{} is not a schema registry's: {e}", path.join("/"))))
    }

    fn refused(&self, refusal: &Refusal) -> Error {
        self.error(format!("it answers {} ({})", refusal.error_code, refusal.message))
    }

    fn error(&self, detail: String) -> Error {
        Error::Registry { url: self.config.url.to_string(), detail }
    }
}

/// The error with its sources: the outermost says least.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    causes(error).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
