//! What a checkpoint does to clients that are not waiting for an answer when it begins.

mod common;

use std::time::Duration;

use common::{checkpoint, state, with_counter};
use ha_lab::{
    clients::newcomers::{Newcomers, repeated_syns},
    demo::ADDRESS,
};

#[test]
fn gate_new_connections_need_no_retransmission_over_checkpoints() {
    let Some(cluster) = with_counter("gate_new_connections_need_no_retransmission_over_checkpoints", 2) else { return };
    let (_, id) = state(&cluster);
    let before = repeated_syns(&cluster.lab).unwrap();
    let address = format!("{ADDRESS}:7000").parse().unwrap();
    let newcomers = Newcomers::start(&cluster.lab, address, Duration::from_millis(3)).unwrap();
    for _ in 0..4 {
        checkpoint(&cluster);
    }
    let (answered, errors) = newcomers.finish().unwrap();
    assert!(answered > 0 && errors.is_empty(), "{answered} answered, but {errors:?}");
    assert_eq!(repeated_syns(&cluster.lab).unwrap(), before, "of {answered} new connections some were lost");
    assert_eq!(state(&cluster).1, id, "it is not the same process any more");
}
