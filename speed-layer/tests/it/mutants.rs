//! Mutants that only this layer's own oracle can show.

use watershed_shared::mutant::{Mutant, assert_noticed};

#[test]
fn a_redelivered_batch_counted_twice_is_noticed() {
    assert_noticed(Mutant::RedeliveredTwice, "oracle::each_answer_is_what_the_log_says");
}
