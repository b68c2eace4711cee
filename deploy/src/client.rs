//! Talks HTTP to a running platform.

use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use reqwest::{Method, StatusCode, Url};
use serde::{Deserialize, Serialize};
use watershed_shared::config::Config;

use crate::cli::PlatformArgs;
use crate::failure::{Failure, Outcome};
use crate::table::Json;

/// What `data_dir/http.json` holds while a platform runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HttpFile {
    /// Such as `http://127.0.0.1:8080`.
    pub(crate) url: String,
}

impl HttpFile {
    /// Where it stands under `data_dir`.
    pub(crate) fn path(data_dir: &Path) -> PathBuf {
        data_dir.join("http.json")
    }
}

/// A platform, found by `--url`, `WATERSHED_URL`, or the configuration.
#[derive(Debug)]
pub(crate) struct Client {
    base: Url,
    http: reqwest::Client,
    token: Option<String>,
}

/// An error that the platform answered: `{"error": {"code", "message"}}`.
#[derive(Debug, thiserror::Error)]
#[error("{message} ({code})")]
pub(crate) struct Answered {
    pub(crate) code: String,
    message: String,
    /// The whole answer: some errors say what was done all the same.
    pub(crate) document: Json,
}

impl Client {
    /// Does not connect yet.
    pub(crate) fn new(platform: &PlatformArgs) -> Outcome<Self> {
        let (text, origin) = match &platform.url {
            Some(url) => (url.clone(), "--url or WATERSHED_URL"),
            None => (url_of(&platform.configuration()?)?, "the configuration"),
        };
        let mut base = Url::parse(&text)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or_else(|| {
                Failure::Usage(format!("`{text}` (from {origin}) is not a URL such as http://localhost:8080"))
            })?;
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(10))
            .build()
            .context("set up the HTTP client")?;
        let token = std::env::var("WATERSHED_TOKEN").ok().filter(|token| !token.is_empty());
        Ok(Self { base, http, token })
    }

    pub(crate) async fn get(&self, path: &[&str], query: &[(&str, &str)]) -> Outcome<Answer> {
        self.send(Method::GET, path, query, None).await
    }

    pub(crate) async fn post(&self, path: &[&str], body: &serde_json::Value) -> Outcome<Answer> {
        self.send(Method::POST, path, &[], Some(body.to_string().into())).await
    }

    /// Posts newline-delimited records.
    pub(crate) async fn post_records(&self, path: &[&str], records: Bytes) -> Outcome<Answer> {
        self.send(Method::POST, path, &[], Some(records)).await
    }

    pub(crate) async fn delete(&self, path: &[&str]) -> Outcome<Answer> {
        self.send(Method::DELETE, path, &[], None).await
    }

    async fn send(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<Bytes>,
    ) -> Outcome<Answer> {
        let mut url = self.base.clone();
        url.path_segments_mut().expect("an http URL has a path").pop_if_empty().extend(path);
        let mut request = self.http.request(method, url).query(query);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body);
        }
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        let text = response.text().await.with_context(|| format!("read the answer of {}", self.base))?;
        if status.is_success() {
            return Ok(Answer { text });
        }
        Err(answered(status, &text).into())
    }

    fn unreachable(&self, error: &reqwest::Error) -> anyhow::Error {
        let mut cause = error.to_string();
        let mut source = error.source();
        while let Some(inner) = source {
            cause = inner.to_string();
            source = inner.source();
        }
        if error.is_connect() {
            return anyhow!(
                "no platform answers at {}: {cause}; start one with `watershed up`, or say where it is with --url or \
                 WATERSHED_URL",
                self.base
            );
        }
        anyhow!("the request to {} failed: {cause}", self.base)
    }
}

fn answered(status: StatusCode, text: &str) -> anyhow::Error {
    #[derive(Deserialize)]
    struct Body {
        error: Inner,
    }
    #[derive(Deserialize)]
    struct Inner {
        code: String,
        message: String,
    }
    if let (Ok(body), Ok(document)) = (serde_json::from_str::<Body>(text), serde_json::from_str(text)) {
        return Answered { code: body.error.code, message: body.error.message, document }.into();
    }
    let hint = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "; set WATERSHED_TOKEN to a token that may do this",
        _ => "",
    };
    let detail: String = text.chars().take(300).collect();
    anyhow!("the platform answered {status}{hint}: {}", detail.trim())
}

/// A successful answer's body, one JSON document.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Outcome<Json> {
        Ok(serde_json::from_str(&self.text)
            .context("the platform's answer is not JSON; is the URL that of a platform?")?)
    }
}

/// Where the configuration's platform answers: as it wrote itself, since port 0 is any free one, else as configured.
fn url_of(config: &Config) -> Outcome<String> {
    let file = HttpFile::path(&config.data_dir);
    match std::fs::read(&file) {
        Ok(bytes) => match serde_json::from_slice::<HttpFile>(&bytes) {
            Ok(found) => return Ok(found.url),
            Err(error) => tracing::warn!(file = %file.display(), %error, "cannot read where the platform listens"),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(file = %file.display(), %error, "cannot read where the platform listens"),
    }
    let mut listen = config.http.listen;
    if listen.port() == 0 {
        return Err(anyhow!(
            "no platform of this configuration runs: `[http] listen` has port 0, and {} is not there; start it with \
             `watershed up`, or say where it is with --url or WATERSHED_URL",
            file.display()
        )
        .into());
    }
    if listen.ip().is_unspecified() {
        let local: std::net::IpAddr = match listen.ip() {
            std::net::IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            std::net::IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        };
        listen.set_ip(local);
    }
    Ok(format!("http://{listen}"))
}
