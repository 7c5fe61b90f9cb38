//! Pure decisions: when to checkpoint, which recovery step comes next, who takes over.
//!
//! Nothing here has a clock, does I/O or draws a number. What a decision needs comes in as a value; what is to be done
//! comes out as one.

// Pure: time comes in as an argument.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

mod backoff;
mod ladder;
mod placement;
mod schedule;

pub use backoff::{Backoff, SETTLED};
pub use ladder::{Attempt, KnownSnapshot, Scope, Situation, Source, handed, newest, plan};
pub use placement::{Candidate, rank};
pub use schedule::Schedule;
