//! Deliberate mistakes of the shell: each has to be caught by an invariant, or the simulation proves nothing. Tests only.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// A renewal counts without a look at the epochs.
    EpochsNotRead,
    /// A renewal reads the epochs before it writes the beat.
    EpochsReadBeforeBeat,
    /// The lease counts from the end of the write.
    CountedFromAfterTheWrite,
    /// An answer counts from its arrival.
    CountedFromTheArrival,
    /// Answers alone revive a lease that has lapsed.
    RevivedByAnswers,
    /// A commit does not look at the epoch.
    CommitDoesNotLook,
    /// A taker asks for no silence towards the owner.
    NoWaitForShort,
    /// A taker asks for no silence in the store.
    NoWaitForLong,
    /// A manager takes what it does not remember for not answered.
    StartForgotten,
    /// A taker settles its base without a look after its claim.
    NoLookAfterClaim,
    /// An owner that claims back leaves the undecided epoch open, and a taker does not look whether its own is still the newest.
    /// One of the two alone keeps them apart.
    UndecidedLeftToItself,
    /// A beat goes as soon as its successor is written.
    BeatsRemovedEarly,
    /// The beats go before the watchdog knows that nothing rests on them.
    RestNotTold,
    /// A manager counts its beats from 1 again.
    BeatNumbersReused,
    /// Every park of a node has the same name.
    OneNameForParks,
    /// Nobody freezes anything but the manager itself.
    NoWatchdog,
}
