//! What came for a container while its port was closed. Pure.
//!
//! A frame is seen coming in at some port of the bridge, and, when the bridge passes it on, once more going out at the
//! container's. In the microseconds around closing and opening nothing but that tells which of the two was first: so a
//! frame that was seen going out is struck off, and what is left was held.

#![deny(clippy::disallowed_methods)]

/// Frames that are looked through for one that went out. It does so directly after it came in, on the same processor, so
/// that only what came in on others lies between.
const LOOK_BACK: usize = 64;

pub(super) struct Kept {
    /// Each behind the `header` bytes that the kernel puts before it, oldest first.
    packets: Vec<Vec<u8>>,
    bytes: usize,
    header: usize,
    limit: usize,
}

impl Kept {
    /// At most `limit` bytes are kept. The first `header` bytes of each packet say how to send it, not what it is.
    pub(super) fn new(header: usize, limit: usize) -> Self {
        Self { packets: Vec::new(), bytes: 0, header, limit }
    }

    /// False when there is no room for it.
    pub(super) fn came_in(&mut self, packet: &[u8]) -> bool {
        if packet.len() > self.limit.saturating_sub(self.bytes) {
            return false;
        }
        self.bytes += packet.len();
        self.packets.push(packet.to_vec());
        true
    }

    /// One that came in before capturing began is not known, and that is fine.
    pub(super) fn went_out(&mut self, packet: &[u8]) {
        let frame = packet.get(self.header..);
        let from = self.packets.len().saturating_sub(LOOK_BACK);
        let found = self.packets[from..].iter().rposition(|kept| kept.get(self.header..) == frame);
        if let Some(found) = found {
            self.bytes -= self.packets.remove(from + found).len();
        }
    }

    /// Everything that is kept, oldest first.
    pub(super) fn take(&mut self) -> Vec<Vec<u8>> {
        self.bytes = 0;
        std::mem::take(&mut self.packets)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kept(kept: &mut Kept) -> Vec<String> {
        kept.take().into_iter().map(|packet| String::from_utf8(packet).unwrap()).collect()
    }

    #[test]
    fn what_went_out_is_not_kept_and_the_rest_is_in_order() {
        let mut all = Kept::new(1, 100);
        for packet in [b"-a", b"-b", b"-a", b"-c"] {
            assert!(all.came_in(packet));
        }
        // Another header, the same frame: of two alike, the later one.
        all.went_out(b"+a");
        all.went_out(b"-x");
        assert_eq!(kept(&mut all), ["-a", "-b", "-c"]);
        assert!(kept(&mut all).is_empty());
    }

    #[test]
    fn there_is_an_end_to_what_is_kept() {
        let mut all = Kept::new(0, 4);
        assert!(all.came_in(b"abc") && !all.came_in(b"de") && all.came_in(b"f"));
        all.went_out(b"abc");
        assert!(all.came_in(b"gh"), "what went out makes room");
        assert_eq!(kept(&mut all), ["f", "gh"]);
        assert!(all.came_in(b"ijkl"), "what was taken makes room");
    }

    proptest! {
        #[test]
        fn each_frame_is_kept_as_often_as_it_did_not_go_out(seen in prop::collection::vec((0_u8..4, any::<bool>()), 0..60)) {
            let mut all = Kept::new(1, 10_000);
            let mut expected = [0_i32; 4];
            for (frame, out) in seen {
                if out {
                    all.went_out(&[1, frame]);
                    expected[usize::from(frame)] = (expected[usize::from(frame)] - 1).max(0);
                } else {
                    all.came_in(&[0, frame]);
                    expected[usize::from(frame)] += 1;
                }
            }
            let mut counts = [0; 4];
            for packet in all.take() {
                counts[usize::from(packet[1])] += 1;
            }
            prop_assert_eq!(counts, expected);
        }
    }
}
