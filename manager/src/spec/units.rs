//! Durations and sizes as people write them, one spelling for every file we read.

use std::time::Duration;

/// Why a duration or size was refused. The message shows the form that is allowed.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum UnitError {
    #[error(
        "{value:?} is not a duration: write a number with its unit (us, ms, s, m, h), e.g. \"250ms\", \"5s\" or \"1m30s\""
    )]
    Duration { value: String },
    #[error("{value:?} is not a size: write a number with its unit (B, KiB, MiB, GiB, TiB), e.g. \"64MiB\"")]
    Bytes { value: String },
    #[error("{value:?} is too large")]
    TooLarge { value: String },
}

/// The longest text that can be a duration or a size; also what is repeated of it in an error.
const MAX_TEXT: usize = 64;

fn shown(value: &str) -> String {
    value.chars().take(MAX_TEXT).collect()
}

/// Splits `1.5GiB` into its number's integer part, its fraction (at most nine digits) and what follows it.
fn leading_number(text: &str) -> Option<(&str, &str, &str)> {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let (whole, rest) = text.split_at(digits(text));
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(after) => after.split_at(digits(after)),
        None => ("", rest),
    };
    let dangling_point = rest.len() + whole.len() + fraction.len() < text.len() && fraction.is_empty();
    if whole.is_empty() || dangling_point || fraction.len() > 9 { None } else { Some((whole, fraction, rest)) }
}

/// `whole.fraction` times `unit`, rounded down; `None` when it does not fit.
fn scaled(whole: &str, fraction: &str, unit: u128) -> Option<u128> {
    let whole: u128 = whole.parse::<u64>().ok()?.into();
    let part = match fraction {
        "" => 0,
        digits => unit.checked_mul(digits.parse().ok()?)? / 10u128.pow(digits.len() as u32),
    };
    whole.checked_mul(unit)?.checked_add(part)
}

/// Reads `250ms`, `5s`, `1m30s`, `1.5h`: numbers with the units us, ms, s, m and h, the larger unit first (Compose's
/// durations). A bare `0` is allowed, any other number without a unit is not.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    const UNITS: [(&str, u128); 5] =
        [("us", 1_000), ("ms", 1_000_000), ("s", 1_000_000_000), ("m", 60_000_000_000), ("h", 3_600_000_000_000)];
    let malformed = || UnitError::Duration { value: shown(text) };
    let too_large = || UnitError::TooLarge { value: shown(text) };
    if text.len() > MAX_TEXT || text.is_empty() {
        return Err(malformed());
    }
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let (mut rest, mut nanos, mut smallest) = (text, 0u128, u128::MAX);
    while !rest.is_empty() {
        let (whole, fraction, after) = leading_number(rest).ok_or_else(malformed)?;
        let word = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (word, after) = after.split_at(word);
        let (_, unit) = *UNITS.iter().find(|(name, _)| *name == word).ok_or_else(malformed)?;
        if unit >= smallest {
            return Err(malformed());
        }
        smallest = unit;
        nanos = scaled(whole, fraction, unit).and_then(|n| nanos.checked_add(n)).ok_or_else(too_large)?;
        rest = after;
    }
    u64::try_from(nanos).map(Duration::from_nanos).map_err(|_| too_large())
}

/// Reads `1GiB`, `64m`, `512kb`, `4096`: every unit is a power of 1024, upper or lower case (as in Compose); a bare
/// number counts bytes.
pub fn parse_bytes(text: &str) -> Result<u64, UnitError> {
    let malformed = || UnitError::Bytes { value: shown(text) };
    if text.len() > MAX_TEXT {
        return Err(malformed());
    }
    let (whole, fraction, unit) = leading_number(text).ok_or_else(malformed)?;
    let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" if fraction.is_empty() => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(malformed()),
    };
    scaled(whole, fraction, 1u128 << shift)
        .and_then(|bytes| u64::try_from(bytes).ok())
        .ok_or_else(|| UnitError::TooLarge { value: shown(text) })
}

/// The word of `allowed` that `word` was most likely meant to be, for "did you mean". `None` when nothing is near.
pub fn nearest<'a>(word: &str, allowed: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word: Vec<char> = word.chars().take(MAX_TEXT + 1).collect();
    if word.len() > MAX_TEXT {
        return None;
    }
    let limit = (word.len() / 3).max(1);
    allowed
        .into_iter()
        .map(|candidate| (edits(&word, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance.
fn edits(word: &[char], candidate: &str) -> usize {
    let mut row: Vec<usize> = (0..=word.len()).collect();
    for (i, c) in candidate.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, w) in word.iter().enumerate() {
            let replaced = diagonal + usize::from(*w != c);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[word.len()]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_need_a_unit_and_the_larger_unit_comes_first() {
        for (text, millis) in
            [("0", 0), ("250ms", 250), ("5s", 5_000), ("1m30s", 90_000), ("1.5s", 1_500), ("1h5m30s20ms", 3_930_020)]
        {
            assert_eq!(parse_duration(text).unwrap(), Duration::from_millis(millis), "{text}");
        }
        for bad in ["", "5", "s", "5 s", "5sec", "1s1m", "1s1s", "-1s", "1.s", ".5s", "1d", "1e3s", "+1s", "5s "] {
            assert!(matches!(parse_duration(bad), Err(UnitError::Duration { .. })), "{bad:?} was accepted");
        }
        assert!(matches!(parse_duration("99999999999h"), Err(UnitError::TooLarge { .. })));
    }

    #[test]
    fn sizes_count_in_powers_of_1024() {
        for (text, bytes) in [
            ("4096", 4096),
            ("2b", 2),
            ("64m", 64 << 20),
            ("1GiB", 1 << 30),
            ("1gb", 1 << 30),
            ("1.5k", 1536),
            ("10 MiB", 10 << 20),
        ] {
            assert_eq!(parse_bytes(text).unwrap(), bytes, "{text}");
        }
        for bad in ["", "k", "1.5", "1.5b", "1 X", "1e3", "-1", "1mbit"] {
            assert!(matches!(parse_bytes(bad), Err(UnitError::Bytes { .. })), "{bad:?} was accepted");
        }
        assert!(matches!(parse_bytes("99999999999999TiB"), Err(UnitError::TooLarge { .. })));
    }

    #[test]
    fn a_near_word_is_found_and_a_far_one_is_not() {
        let allowed = ["interval", "timeout", "retries"];
        assert_eq!(nearest("intervall", allowed), Some("interval"));
        assert_eq!(nearest("retires", allowed), Some("retries"));
        assert_eq!(nearest("volumes", allowed), None);
        assert_eq!(nearest("", allowed), None);
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in ".{0,80}") {
            let _ = (parse_duration(&text), parse_bytes(&text), nearest(&text, ["interval"]));
        }

        #[test]
        fn whole_milliseconds_survive(millis in 0u64..10_000_000_000) {
            prop_assert_eq!(parse_duration(&format!("{millis}ms")), Ok(Duration::from_millis(millis)));
        }
    }
}
