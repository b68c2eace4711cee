//! Identifiers that two or more layers name.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            pub fn new(text: impl Into<String>) -> Self {
                Self(text.into())
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_id! {
    /// The hash of all that decides a view's answer: lowercase hexadecimal SHA-256.
    DefinitionHash
}
text_id! {
    /// One execution of a rebuild or refresh.
    BuildId
}
text_id! {
    /// An immutable run of states; unique for ever.
    RunId
}

impl BuildId {
    /// A new one, never used before.
    pub fn unique() -> Self {
        Self(uuid::Uuid::new_v4().simple().to_string())
    }
}

impl RunId {
    /// A new one, never used before.
    pub fn unique() -> Self {
        Self(uuid::Uuid::new_v4().simple().to_string())
    }
}

/// The number of a view's generation, from 1; 0 stands for "none yet": the answer is the delta from the origin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GenerationId(pub u64);

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
