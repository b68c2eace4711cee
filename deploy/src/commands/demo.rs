//! `watershed demo`: the whole platform on embedded defaults, fed with generated events, and in one screen what is
//! special about it: events flow, a rebuild publishes, and the answer at a position does not move.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use watershed_shared::clock;
use watershed_shared::config::Config;

use super::up::Role;
use crate::cli::OutputFormat;
use crate::platform::Platform;

/// Events of the first load.
const LOAD: usize = 20_000;
/// Events a second after that.
const RATE: usize = 500;
const WAIT: Duration = Duration::from_secs(120);

/// The demo's configuration, which is also what the user is told to look at.
const CONFIG: &str = include_str!("../../demo/watershed.toml");

/// What the demo was asked for.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Keep everything here instead of in a temporary folder.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Where HTTP listens; port 0 takes any free one.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: String,
    /// Where the embedded broker listens; port 0 takes any free one.
    #[arg(long, default_value = "127.0.0.1:9092")]
    broker: String,
    /// End after the show instead of going on until Ctrl-C.
    #[arg(long)]
    exit: bool,
}

/// Runs the demo until Ctrl-C, or to its end with `--exit`.
pub(crate) async fn run(options: Options, format: OutputFormat, shutdown: CancellationToken) -> Result<()> {
    // Before anything is written: the messages of what starts later speak of a configuration that the user never saw.
    free("--listen", &options.listen)?;
    free("--broker", &options.broker)?;
    let temporary = match &options.data_dir {
        Some(_) => None,
        None => Some(tempfile::tempdir().context("create a temporary folder")?),
    };
    let dir = options.data_dir.clone().or_else(|| temporary.as_ref().map(|t| t.path().to_owned()));
    let dir = dir.expect("one of the two is there");
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let file = write_config(&dir, &options)?;
    let config = Config::load(Some(&file)).map_err(|errors| anyhow::anyhow!("the demo's configuration: {errors:?}"))?;
    let platform = match Platform::start(&config, Role::All).await {
        Ok(platform) => platform,
        Err(error) => {
            // What had started already still writes there until the process ends.
            drop(temporary.map(tempfile::TempDir::keep));
            return Err(error);
        }
    };
    let outcome = tokio::select! {
        outcome = show(&platform, &file, &options, format, &shutdown) => outcome,
        () = shutdown.cancelled() => Ok(()),
        error = platform.failed() => Err(error),
    };
    platform.stop().await;
    outcome
}

/// # Errors
/// When `address`, the value of `option`, is none, or somebody listens there.
fn free(option: &str, address: &str) -> Result<()> {
    match std::net::TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(error) => Err(error).with_context(|| {
            format!(
                "cannot listen on {address}: stop the other program or give another port, as in {option} 127.0.0.1:0"
            )
        }),
    }
}

fn write_config(dir: &Path, options: &Options) -> Result<PathBuf> {
    let file = dir.join("watershed.toml");
    let text = CONFIG.replace("127.0.0.1:8080", &options.listen).replace("127.0.0.1:9092", &options.broker);
    std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
    Ok(file)
}

async fn show(
    platform: &Platform,
    file: &Path,
    options: &Options,
    format: OutputFormat,
    shutdown: &CancellationToken,
) -> Result<()> {
    let demo = Demo { http: reqwest::Client::new(), url: format!("http://{}", platform.http) };
    let screen = Screen(format);
    screen.text(&format!(
        "watershed demo\n  HTTP and console  {}\n  Kafka broker      {}\n  configuration     {}",
        demo.url,
        platform.bootstrap_servers,
        file.display()
    ))?;

    // In a folder of an earlier demo there are events already.
    demo.caught_up().await?;
    let mut clicks = Clicks::new();
    let ends = demo.publish(&mut clicks, LOAD).await?;
    let before = demo.answer(&ends).await?;
    let partitions = meta(&before)["partitions"].as_object().into_iter().flatten();
    let events: i64 = partitions.filter_map(|(_, partition)| partition["position"].as_i64()).sum();
    let parts = match meta(&before)["generation"].as_u64() {
        None | Some(0) => "the speed layer alone".to_owned(),
        Some(generation) => format!("generation {generation} and what came since"),
    };
    screen.step(1, &format!("{events} events are in the log. The view answers from {parts}:"), &before)?;

    let status = demo.rebuild("pages", "rebuild").await?;
    let after = demo.answer(&ends).await?;
    ensure!(same_rows(&before, &after), "the answer at a position moved:\n{before}\n{after}");
    let (id, state) = (text(&status["id"]), text(&status["state"]));
    let built = format!("   build {id}: {state}, generation {}", status["generation"]);
    let what = "A rebuild recounts everything from the master dataset and publishes a generation.";
    screen.step(2, &format!("{what}\n\n{built}"), &after)?;
    screen.text("\n   The same position, now from the batch layer: the same answer, to the last digit.")?;

    let ends = demo.publish(&mut clicks, LOAD / 10).await?;
    let merged = demo.answer(&ends).await?;
    screen.step(3, "More events arrive, some of them late. Generation and delta are merged:", &merged)?;

    screen.text(&format!(
        "\nTry, in another terminal:\n  curl '{url}/v1/views/pages?order=views%20DESC&limit=3'\n  \
         watershed query --url {url} \"SELECT page, sum(views) AS views FROM pages GROUP BY page\"\n  \
         watershed rebuild pages --wait --url {url}\n  watershed status --url {url}",
        url = demo.url
    ))?;
    if options.exit {
        return Ok(());
    }
    screen.text(&format!("\n{RATE} events a second go on arriving, a refresh each minute. Ctrl-C ends the demo."))?;
    while !shutdown.is_cancelled() {
        demo.publish(&mut clicks, RATE).await?;
        clock::sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}

/// Where the show is seen: for people a text, for programs a line of JSON for each step.
struct Screen(OutputFormat);

impl Screen {
    fn text(&self, text: &str) -> Result<()> {
        match self.0 {
            OutputFormat::Text => print(text),
            OutputFormat::Json => Ok(()),
        }
    }

    fn step(&self, number: u8, what: &str, answer: &Value) -> Result<()> {
        match self.0 {
            OutputFormat::Text => print(&format!("\n{number}. {what}\n\n{}", table(answer))),
            OutputFormat::Json => print(&json!({"step": number, "what": what, "answer": answer}).to_string()),
        }
    }
}

fn print(text: &str) -> Result<()> {
    crate::output::print(text).map_err(|failure| anyhow::anyhow!("cannot write to standard output: {failure:?}"))
}

fn meta(answer: &Value) -> &Value {
    &answer["meta"]["views"]["pages"]
}

/// The rows of an answer, and where it stands.
fn table(answer: &Value) -> String {
    let mut out = format!("   {:<10} {:>8} {:>12} {:>12} {:>8}\n", "page", "views", "bytes", "avg ms", "visitors");
    for row in answer["rows"].as_array().into_iter().flatten() {
        out.push_str(&format!(
            "   {:<10} {:>8} {:>12} {:>12.3} {:>8}\n",
            text(&row["page"]),
            row["views"].to_string(),
            row["bytes"].to_string(),
            row["avg_ms"].as_f64().unwrap_or(f64::NAN),
            row["visitors"].to_string()
        ));
    }
    let meta = meta(answer);
    out.push_str(&format!("   generation {}, complete {}; partitions:\n", meta["generation"], meta["complete"]));
    for (partition, state) in meta["partitions"].as_object().into_iter().flatten() {
        let (cut, position, end) = (&state["batch_until"], &state["position"], &state["log_end"]);
        out.push_str(&format!("     {partition}: batch until {cut}, answer until {position}, log until {end}\n"));
    }
    out
}

/// Talks to the demo's own platform as any client would.
struct Demo {
    http: reqwest::Client,
    url: String,
}

impl Demo {
    /// Waits until what the log had at the start is in the answers.
    async fn caught_up(&self) -> Result<()> {
        let deadline = clock::Instant::now() + WAIT;
        loop {
            let answer = self.http.get(format!("{}/readyz", self.url)).send().await?;
            if answer.status().is_success() {
                return Ok(());
            }
            ensure!(clock::Instant::now() < deadline, "not ready: {}", answer.text().await?);
            clock::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Publishes generated events; answers the offsets behind them.
    async fn publish(&self, clicks: &mut Clicks, count: usize) -> Result<Value> {
        let body: String = (0..count).map(|_| format!("{}\n", clicks.event())).collect();
        let answer = self.http.post(format!("{}/v1/streams/clicks", self.url)).body(body).send().await?;
        let body = accepted(answer, "publish events").await?;
        Ok(body["offsets"].clone())
    }

    async fn answer(&self, ends: &Value) -> Result<Value> {
        let wait_for = ends.to_string();
        let request = self.http.get(format!("{}/v1/views/pages", self.url));
        let query = [("order", "page"), ("wait_for", &wait_for), ("timeout_ms", "120000")];
        accepted(request.query(&query).send().await?, "read the view").await
    }

    async fn rebuild(&self, view: &str, mode: &str) -> Result<Value> {
        let deadline = clock::Instant::now() + WAIT;
        let started = loop {
            let request = self.http.post(format!("{}/v1/views/{view}/rebuilds", self.url)).json(&json!({"mode": mode}));
            let answer = request.send().await?;
            // A build of the view's schedule may run just now.
            if answer.status() != reqwest::StatusCode::CONFLICT || clock::Instant::now() > deadline {
                break accepted(answer, "start a build").await?;
            }
            clock::sleep(Duration::from_millis(100)).await;
        };
        let id = text(&started["id"]);
        loop {
            let request = self.http.get(format!("{}/v1/rebuilds/{id}", self.url)).query(&[("wait_ms", "1000")]);
            let status = accepted(request.send().await?, "follow a build").await?;
            match status["state"].as_str() {
                Some("succeeded") => return Ok(status),
                Some("queued" | "running" | "publishing") if clock::Instant::now() < deadline => {}
                _ => anyhow::bail!("the build did not succeed: {status}"),
            }
        }
    }
}

async fn accepted(answer: reqwest::Response, what: &str) -> Result<Value> {
    let status = answer.status();
    let body: Value = answer.json().await.with_context(|| format!("cannot {what}: {status}"))?;
    ensure!(status.is_success(), "cannot {what}: {status} {}", text(&body["error"]["message"]));
    Ok(body)
}

/// Whether two answers have the same rows: averages within the tolerance that summation order leaves.
fn same_rows(a: &Value, b: &Value) -> bool {
    let rows = |body: &Value| -> Vec<Value> { body["rows"].as_array().cloned().unwrap_or_default() };
    let (a, b) = (rows(a), rows(b));
    a.len() == b.len()
        && a.iter().zip(&b).all(|(a, b)| {
            let exact = ["page", "views", "bytes", "visitors"].iter().all(|column| a[*column] == b[*column]);
            let (x, y) = (a["avg_ms"].as_f64().unwrap_or(0.0), b["avg_ms"].as_f64().unwrap_or(0.0));
            exact && (x - y).abs() <= 1e-9 * x.abs().max(1.0)
        })
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Makes up clicks: a few pages, many visitors, some events late by up to an hour.
struct Clicks {
    random: StdRng,
    at: chrono::DateTime<chrono::Utc>,
}

impl Clicks {
    fn new() -> Self {
        Self { random: StdRng::seed_from_u64(2024), at: clock::now() - chrono::Duration::hours(1) }
    }

    fn event(&mut self) -> Value {
        const PAGES: [&str; 6] = ["/", "/search", "/product", "/cart", "/checkout", "/help"];
        let r = &mut self.random;
        self.at = (self.at + chrono::Duration::milliseconds(r.random_range(0..250))).min(clock::now());
        let late = if r.random_bool(0.02) { r.random_range(0..3600) } else { 0 };
        let page = PAGES[r.random_range(0..PAGES.len()).min(r.random_range(0..PAGES.len()))];
        json!({
            "at": (self.at - chrono::Duration::seconds(late)).to_rfc3339(),
            "page": page,
            "visitor": format!("u{}", r.random_range(0..5000)),
            "ms": f64::from(r.random_range(10..20_000)) / 10.0,
            "bytes": r.random_range(200..50_000),
        })
    }
}
