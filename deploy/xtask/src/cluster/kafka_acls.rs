//! What a user of the secured listener may do with a topic.

use anyhow::{Result, ensure};

use super::Secured;
use super::kafka_protocol::{Answer, ask, put_text};

const CREATE_ACLS: i16 = 30;
const DELETE_ACLS: i16 = 31;
const VERSION: i16 = 1;
const TOPIC: i8 = 2;
const LITERAL: i8 = 3;

/// What may be done with a topic, by Kafka's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    Read = 3,
    Write = 4,
    Create = 5,
    Describe = 8,
    DescribeConfigs = 10,
}

/// Whether it is allowed, by Kafka's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    Deny = 2,
    Allow = 3,
}

/// One rule for [`Secured::LIMITED`]. What no rule allows is denied.
#[derive(Debug, Clone, Copy)]
pub struct Acl<'a> {
    pub topic: &'a str,
    pub right: Right,
    pub permission: Permission,
}

impl Acl<'_> {
    /// Adds the rule; it holds in every broker soon after. `bootstrap`: of the listener without security.
    pub fn add(&self, bootstrap: &str) -> Result<()> {
        let mut body = 1_i32.to_be_bytes().to_vec();
        self.put(&mut body);
        check(&ask(first(bootstrap), CREATE_ACLS, VERSION, &body)?)
    }

    /// Takes the rule back.
    pub fn remove(&self, bootstrap: &str) -> Result<()> {
        let mut body = 1_i32.to_be_bytes().to_vec();
        self.put(&mut body);
        check(&ask(first(bootstrap), DELETE_ACLS, VERSION, &body)?)
    }

    /// A creation and a filter are laid out alike.
    fn put(&self, body: &mut Vec<u8>) {
        body.push(TOPIC.cast_unsigned());
        put_text(body, self.topic);
        body.push(LITERAL.cast_unsigned());
        put_text(body, &format!("User:{}", Secured::LIMITED));
        put_text(body, "*");
        body.push(self.right as u8);
        body.push(self.permission as u8);
    }
}

fn first(bootstrap: &str) -> &str {
    bootstrap.split(',').next().unwrap_or(bootstrap)
}

/// Throttle time, a count of one, then its error.
fn check(answer: &Answer) -> Result<()> {
    let code = answer.short(8)?;
    ensure!(answer.int(4)? == 1 && code == 0, "the broker refuses the rule with error {code}");
    Ok(())
}
