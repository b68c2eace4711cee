//! `GET /v1/views/{view}/live`: the view as it changes.

use std::collections::BTreeMap;
use std::convert::Infallible;

use futures::StreamExt;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use warp::Reply;
use warp::reply::Response;
use warp::sse::Event;
use watershed_shared::names::DefinitionHash;
use watershed_shared::offsets::OffsetVector;
use watershed_shared::{clock, task};

use super::Request;
use super::params::Params;
use crate::ask::Ask;
use crate::encode;
use crate::error::{Code, Error, Result};
use crate::serving::Serving;
use crate::sql::{DEFAULT_LIMIT_ROWS, Select};

/// Events that a slow client may leave unread before its next one waits.
const QUEUE: usize = 16;

/// The view at one moment: its rows by key (rows without a key by themselves, numbered among equals).
#[derive(Debug, Default, PartialEq)]
struct State {
    rows: BTreeMap<String, (Value, Value)>,
    position: OffsetVector,
    /// By which they were answered.
    definition: Option<DefinitionHash>,
}

/// What was read, in its order.
struct Read {
    rows: Vec<Value>,
    state: State,
}

pub(super) async fn live(request: Request, view: String) -> Result<Response> {
    let params = Params::parse(&request.query, &["where"])?;
    let stream = request.serving.view(&view)?.stream.clone();
    let permit = std::sync::Arc::clone(&request.serving.inner.live).try_acquire_owned();
    let permit = permit.map_err(|_| Error::new(Code::TooManyRequests, "too many live connections are open"))?;
    let select = Select { filter: params.text("where"), ..Select::default() };
    let first = read(&request, &view, &select).await?;
    let resumed = request.last_event_id.as_deref().and_then(|id| serde_json::from_str::<OffsetVector>(id).ok());
    // SUBTLE: an id is a position, and does not say by which definition it was answered.
    let one_definition = request.serving.view(&view)?.register.borrow().definitions.len() <= 1;
    let (sender, receiver) = mpsc::channel::<Event>(QUEUE);
    task::spawn("live", async move {
        let _permit = permit;
        let serving = request.serving.clone();
        let mut answers = serving.answers(&stream).expect("the view's stream is there");
        // Who has seen exactly this needs no snapshot.
        if resumed.filter(|_| one_definition).as_ref() != Some(&first.state.position)
            && sender.send(snapshot(&first)).await.is_err()
        {
            return;
        }
        let mut shown = first.state;
        let settings = &serving.inner.input.settings;
        let mut beat = clock::Instant::now() + settings.heartbeat;
        loop {
            tokio::select! {
                () = sender.closed() => return,
                changed = answers.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = tokio::time::sleep_until(beat) => {
                    let heartbeat = json!({ "position": shown.position });
                    if sender.send(event("heartbeat", &shown.position, &heartbeat)).await.is_err() {
                        return;
                    }
                    beat = clock::Instant::now() + settings.heartbeat;
                    continue;
                }
            }
            let moved = answers.borrow_and_update().views.get(&view).is_some_and(|v| {
                v.position != shown.position || Some(v.compiled.definition()) != shown.definition.as_ref()
            });
            if !moved {
                continue;
            }
            let next = match read(&request, &view, &select).await {
                Ok(next) => next,
                // The connection ends; the client comes back and is told why.
                Err(error) => {
                    tracing::info!(%view, %error, "a live view ends");
                    return;
                }
            };
            let change = match next.state.definition == shown.definition {
                true => delta(&shown, &next.state).map(|delta| event("delta", &next.state.position, &delta)),
                // Other rows, perhaps of other columns: nothing of what was shown holds.
                false => Some(snapshot(&next)),
            };
            if let Some(change) = change
                && sender.send(change).await.is_err()
            {
                return;
            }
            shown = next.state;
            clock::sleep(settings.live_interval).await;
        }
    });
    let events = ReceiverStream::new(receiver).map(Ok::<_, Infallible>);
    Ok(warp::sse::reply(events).into_response())
}

async fn read(request: &Request, view: &str, select: &Select) -> Result<Read> {
    let ask =
        Ask { wait_for: BTreeMap::new(), deadline: request.deadline(None), generation: None, min_complete: false };
    let answer = request.serving.ask(&select.query(view)?, &ask).await?;
    if answer.rows.count() > DEFAULT_LIMIT_ROWS {
        let message = format!("a live view may have {DEFAULT_LIMIT_ROWS} rows: take fewer with where");
        return Err(Error::bad_parameter("where", message));
    }
    let bytes = encode::json_rows(&answer.rows.schema, &answer.rows.batches);
    let bytes = bytes.map_err(|e| Error::new(Code::BadSql, e.to_string()))?;
    let rows: Vec<Value> = serde_json::from_slice(&bytes).map_err(Error::internal)?;
    let keys = key_names(&request.serving, view)?;
    let meta = &answer.meta.views[view];
    let position = meta.partitions.iter().map(|(p, m)| (*p, m.position)).collect();
    let definition = Some(meta.definition.clone());
    Ok(Read { state: State { rows: keyed(&rows, &keys), position, definition }, rows })
}

fn snapshot(read: &Read) -> Event {
    let position = &read.state.position;
    event("snapshot", position, &json!({ "rows": read.rows, "position": position }))
}

fn key_names(serving: &Serving, view: &str) -> Result<Vec<String>> {
    let now = serving.now(&serving.view(view)?.stream)?;
    let keys = now.views.get(view).map(|v| {
        let found: Vec<_> = v.compiled.key_columns().iter().map(|(n, i)| (n.clone(), *i)).collect();
        let all = (0..v.compiled.key_count()).all(|key| found.iter().any(|(_, i)| *i == key));
        if all { found.into_iter().map(|(n, _)| n).collect() } else { Vec::new() }
    });
    Ok(keys.unwrap_or_default())
}

/// Each row under its key; a row without key columns is its own key.
fn keyed(rows: &[Value], keys: &[String]) -> BTreeMap<String, (Value, Value)> {
    let mut keyed = BTreeMap::new();
    for row in rows {
        let key = match keys {
            [] => row.clone(),
            keys => keys.iter().map(|k| (k.clone(), row[k.as_str()].clone())).collect(),
        };
        let mut name = key.to_string();
        let mut equal = 1;
        while keyed.contains_key(&name) {
            equal += 1;
            name = format!("{key}#{equal}");
        }
        keyed.insert(name, (key, row.clone()));
    }
    keyed
}

/// What changed; `None`: nothing did.
fn delta(shown: &State, next: &State) -> Option<Value> {
    let changed =
        |(name, (_, row)): &(&String, &(Value, Value))| shown.rows.get(*name).is_none_or(|(_, old)| old != row);
    let upserts: Vec<&Value> = next.rows.iter().filter(changed).map(|(_, (_, row))| row).collect();
    let gone = shown.rows.iter().filter(|(name, _)| !next.rows.contains_key(*name));
    let deletes: Vec<&Value> = gone.map(|(_, (key, _))| key).collect();
    let something = !upserts.is_empty() || !deletes.is_empty();
    something.then(|| json!({ "upserts": upserts, "deletes": deletes, "position": next.position }))
}

fn event(name: &str, position: &OffsetVector, data: &Value) -> Event {
    let id = serde_json::to_string(position).expect("offsets serialize");
    Event::default().event(name).id(id).data(data.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(rows: Value, keys: &[&str]) -> State {
        let keys: Vec<String> = keys.iter().map(|k| (*k).to_owned()).collect();
        State { rows: keyed(rows.as_array().unwrap(), &keys), position: [(0, 1)].into(), definition: None }
    }

    #[test]
    fn a_delta_is_what_changed() {
        let a = state(json!([{"k": 1, "n": 1}, {"k": 2, "n": 1}]), &["k"]);
        let b = state(json!([{"k": 1, "n": 2}, {"k": 3, "n": 1}]), &["k"]);
        let expected =
            json!({"upserts": [{"k": 1, "n": 2}, {"k": 3, "n": 1}], "deletes": [{"k": 2}], "position": {"0": 1}});
        assert_eq!(delta(&a, &b), Some(expected));
        assert_eq!(delta(&a, &a), None);
    }

    #[test]
    fn equal_rows_without_a_key_are_counted() {
        let a = state(json!([{"n": 1}]), &[]);
        let b = state(json!([{"n": 1}, {"n": 1}]), &[]);
        assert_eq!(delta(&a, &b).unwrap()["upserts"], json!([{"n": 1}]));
        assert_eq!(delta(&b, &a).unwrap()["deletes"], json!([{"n": 1}]));
    }
}
