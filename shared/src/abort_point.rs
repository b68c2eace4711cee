//! Named points at which a test can make an operation end, as a crash would.
//!
//! [`abort_point!`](crate::abort_point!) stands where a crash between two durable steps must not cost exactness. Without
//! feature `testing` it expands to nothing. With it
//! - in a test, code that runs inside [`scope`] fails at the armed point with [`Aborted`];
//! - in a process, `WATERSHED_ABORT_AT=name` (or `name:3`, the third time) ends the process there and then, without
//!   any clean-up, as `kill -9` does.

#[cfg(any(test, feature = "testing"))]
pub use armed::{AbortPoint, Aborted, hit, pass, scope};

/// Ends the operation here if a test says so: returns from the enclosing function with `Err(Aborted.into())`.
///
/// `abort_point!(process "name")` stands where there is no error to return: it ends processes only.
#[cfg(any(test, feature = "testing"))]
#[macro_export]
macro_rules! abort_point {
    ($name:literal) => {
        $crate::abort_point::hit($name)?
    };
    (process $name:literal) => {
        $crate::abort_point::pass($name)
    };
}

/// Ends the operation here if a test says so; nothing without feature `testing`.
#[cfg(not(any(test, feature = "testing")))]
#[macro_export]
macro_rules! abort_point {
    ($name:literal) => {};
    (process $name:literal) => {};
}

#[cfg(any(test, feature = "testing"))]
mod armed {
    use std::future::Future;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{Arc, OnceLock};

    /// What a crash looks like within one process: the operation ended at the named point.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
    #[error("aborted by a test. point=`{0}`")]
    pub struct Aborted(pub &'static str);

    /// A point that fails the `nth` time that it is passed, counted from 1, and only then.
    #[derive(Debug, Clone)]
    pub struct AbortPoint {
        name: &'static str,
        nth: u32,
        passed: Arc<AtomicU32>,
    }

    impl AbortPoint {
        pub fn first(name: &'static str) -> Self {
            Self::nth(name, 1)
        }

        pub fn nth(name: &'static str, nth: u32) -> Self {
            Self { name, nth, passed: Arc::default() }
        }

        /// Whether it has fired: a test that injects a fault must see that it did.
        pub fn fired(&self) -> bool {
            self.passed.load(Ordering::Relaxed) >= self.nth
        }

        fn hit(&self, name: &str) -> bool {
            name == self.name && self.passed.fetch_add(1, Ordering::Relaxed) + 1 == self.nth
        }
    }

    tokio::task_local! {
        static ARMED: Vec<AbortPoint>;
    }

    /// Runs `future` with `points` armed. Tasks that it spawns are outside.
    pub async fn scope<F: Future>(points: Vec<AbortPoint>, future: F) -> F::Output {
        ARMED.scope(points, future).await
    }

    /// The point `name` is passed.
    ///
    /// # Errors
    /// [`Aborted`] if it is armed in this task and it is its turn.
    pub fn hit(name: &'static str) -> Result<(), Aborted> {
        pass(name);
        match ARMED.try_with(|points| points.iter().any(|p| p.hit(name))) {
            Ok(true) => Err(Aborted(name)),
            // Outside of any scope nothing is armed.
            Ok(false) | Err(_) => Ok(()),
        }
    }

    /// The point `name` is passed where no operation can be made to fail: only a process ends here.
    pub fn pass(name: &str) {
        static TOLD: OnceLock<Option<(String, u32)>> = OnceLock::new();
        static PASSED: AtomicU32 = AtomicU32::new(0);
        let told = TOLD.get_or_init(|| std::env::var("WATERSHED_ABORT_AT").ok().map(|text| parse(&text)));
        if let Some((at, nth)) = told
            && at == name
            && PASSED.fetch_add(1, Ordering::Relaxed) + 1 == *nth
        {
            eprintln!("aborting at {name}, as WATERSHED_ABORT_AT says");
            std::process::abort();
        }
    }

    /// `name` or `name:nth`.
    fn parse(text: &str) -> (String, u32) {
        match text.rsplit_once(':').and_then(|(name, nth)| nth.parse().ok().map(|n| (name.to_owned(), n))) {
            Some(told) => told,
            None => (text.to_owned(), 1),
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        fn two_steps() -> Result<u32, Aborted> {
            crate::abort_point!("test.first_step");
            crate::abort_point!("test.second_step");
            Ok(2)
        }

        #[tokio::test]
        async fn an_armed_point_fails_once() {
            let point = AbortPoint::nth("test.second_step", 2);
            let results = scope(vec![point.clone()], async { [two_steps(), two_steps(), two_steps()] }).await;
            assert_eq!(results, [Ok(2), Err(Aborted("test.second_step")), Ok(2)]);
            assert!(point.fired());
            assert_eq!(two_steps(), Ok(2), "outside of the scope nothing is armed");
        }

        #[test]
        fn the_environment_names_a_point_and_its_turn() {
            assert_eq!(parse("archiver.committed"), ("archiver.committed".to_owned(), 1));
            assert_eq!(parse("archiver.committed:3"), ("archiver.committed".to_owned(), 3));
        }
    }
}
