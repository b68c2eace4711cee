//! What tests need of the world around them.

/// The address of a real component that `cargo xtask test` starts: `WATERSHED_TEST_KAFKA`, `WATERSHED_TEST_HDFS`.
///
/// `None` under plain `cargo test`, where the caller leaves its test out and this says so. Under `cargo xtask test` a
/// missing address is a failure: there nothing may be left out.
pub fn real_component(variable: &str) -> Option<String> {
    let address = std::env::var(variable).ok();
    if address.is_none() {
        let all = std::env::var_os("WATERSHED_TEST_ALL").is_some();
        assert!(!all, "{variable} is not set, though WATERSHED_TEST_ALL asks for every test");
        println!("left out: {variable} is not set; `cargo xtask test` starts what it takes");
    }
    address
}
