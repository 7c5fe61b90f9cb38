//! Messages on a stream: four bytes of length, big-endian, then the message, at most 64 KiB.

use ha_proto::agent::MAX_MESSAGE;
use prost::Message;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WireError {
    #[error("a message of {0} bytes was announced; at most {MAX_MESSAGE} are taken")]
    TooLarge(usize),
    #[error("not a message of this protocol")]
    Garbage,
    #[error("bytes after the end of the message")]
    Trailing,
}

/// The message in `bytes`, or `None` while it is incomplete.
///
/// # Errors
/// [`WireError`]: nothing that comes after can make it a message.
pub fn decode<M: Message + Default>(bytes: &[u8]) -> Result<Option<M>, WireError> {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*length) as usize;
    if length > MAX_MESSAGE {
        return Err(WireError::TooLarge(length));
    }
    if rest.len() > length {
        return Err(WireError::Trailing);
    }
    if rest.len() < length { Ok(None) } else { M::decode(rest).map(Some).map_err(|_| WireError::Garbage) }
}

/// Length and message. What the agent sends is far below the limit; the caller sees to it.
pub fn encode(message: &impl Message) -> Vec<u8> {
    let body = message.encode_to_vec();
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes()[..], &body].concat()
}

#[cfg(test)]
mod tests {
    use ha_proto::agent::{Check, Request, request::Kind};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_prefix_of_a_message_is_incomplete_and_the_whole_is_read(nonce: u64, timeout_ms: u32) {
            let request = Request { nonce, kind: Some(Kind::Check(Check { timeout_ms })) };
            let bytes = encode(&request);
            for end in 0..bytes.len() {
                prop_assert_eq!(decode::<Request>(&bytes[..end]), Ok(None));
            }
            prop_assert_eq!(decode::<Request>(&bytes), Ok(Some(request)));
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<Request>(&bytes);
        }
    }

    #[test]
    fn an_oversized_length_is_refused_before_the_message_comes() {
        assert_eq!(decode::<Request>(&[0xff; 4]), Err(WireError::TooLarge(0xffff_ffff)));
        assert_eq!(decode::<Request>(&[0, 0, 0, 0, 1]), Err(WireError::Trailing));
        assert_eq!(decode::<Request>(&[0, 0, 0, 1, 0xff]), Err(WireError::Garbage));
    }
}
