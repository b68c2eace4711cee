//! Compiled definitions by their hash.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use watershed_shared::catalog::Definition;
use watershed_shared::view::CompiledView;

/// Compiles recorded definitions.
///
/// # Contract
/// The compiled view has exactly the recorded hash. A second call for the same definition is cheap.
#[async_trait]
pub trait Definitions: Send + Sync + fmt::Debug {
    /// # Errors
    /// Why it cannot be compiled here, for people. Asked again later: the storage may be back.
    async fn compiled(&self, view: &str, definition: &Definition) -> Result<Arc<CompiledView>, String>;
}
