//! Numbers from their text, exact: no float in between.

/// Why a text is not the wanted number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NumberFault {
    /// It is not written like a number.
    NotANumber,
    /// It has digits that the result has no place for.
    Inexact,
    TooLarge,
}

/// What becomes of digits that the result has no place for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Digits {
    MustFit,
    /// Toward the smaller number.
    Floor,
}

/// A number's text, taken apart: `mantissa * 10^exponent`, and more if `cut`.
#[derive(Debug)]
struct Parts {
    negative: bool,
    mantissa: u128,
    exponent: i64,
    /// There are digits other than 0 behind the mantissa.
    cut: bool,
}

/// Whether `text` is written like a number: sign, digits with at most one point among them, exponent.
pub(super) fn is_number(text: &str) -> bool {
    parts(text).is_some()
}

/// `text * 10^shift` as an integer. Every number that JSON can write is read, whatever its length and exponent.
pub(super) fn parse_scaled(text: &str, shift: i64, digits: Digits) -> Result<i128, NumberFault> {
    let Parts { negative, mantissa, exponent, cut } = parts(text).ok_or(NumberFault::NotANumber)?;
    if mantissa == 0 {
        return Ok(0);
    }
    let shift = exponent.saturating_add(shift);
    let (magnitude, rest) = if shift >= 0 {
        let factor = u32::try_from(shift).ok().and_then(|n| 10_u128.checked_pow(n)).ok_or(NumberFault::TooLarge)?;
        (mantissa.checked_mul(factor).ok_or(NumberFault::TooLarge)?, cut)
    } else {
        // A mantissa has at most 38 digits, so that a divisor past u128 leaves nothing of it.
        let divisor = u32::try_from(-shift).ok().and_then(|n| 10_u128.checked_pow(n));
        divisor.map_or((0, true), |d| (mantissa / d, cut || mantissa % d != 0))
    };
    if rest && digits == Digits::MustFit {
        return Err(if shift >= 0 { NumberFault::TooLarge } else { NumberFault::Inexact });
    }
    let magnitude = i128::try_from(magnitude).map_err(|_| NumberFault::TooLarge)?;
    Ok(match (negative, rest) {
        (false, _) => magnitude,
        (true, false) => -magnitude,
        (true, true) => -magnitude - 1,
    })
}

/// An integer as most are written, in at most 18 digits; `None` leaves it to [`parse_scaled`].
#[inline]
pub(super) fn parse_short(text: &str) -> Option<i64> {
    let (negative, digits) = match text.as_bytes() {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    if digits.is_empty() || digits.len() > 18 {
        return None;
    }
    let mut number = 0_i64;
    for byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        number = number * 10 + i64::from(digit);
    }
    Some(if negative { -number } else { number })
}

fn parts(text: &str) -> Option<Parts> {
    /// Up to here one more digit fits, so that a mantissa has at most 38.
    const ROOM: u128 = 10_u128.pow(37);
    let mut rest = text.as_bytes();
    let negative = rest.first() == Some(&b'-');
    if let [b'-' | b'+', after @ ..] = rest {
        rest = after;
    }
    let (mut mantissa, mut exponent, mut cut) = (0_u128, 0_i64, false);
    let (mut any, mut point) = (false, false);
    loop {
        match rest {
            [digit @ b'0'..=b'9', after @ ..] => {
                any = true;
                if mantissa < ROOM {
                    mantissa = mantissa * 10 + u128::from(digit - b'0');
                    exponent -= i64::from(point);
                } else {
                    cut |= *digit != b'0';
                    exponent += i64::from(!point);
                }
                rest = after;
            }
            [b'.', after @ ..] if !point => {
                point = true;
                rest = after;
            }
            _ => break,
        }
    }
    if !any {
        return None;
    }
    match rest {
        [] => {}
        [b'e' | b'E', after @ ..] => exponent = exponent.saturating_add(parse_exponent(after)?),
        _ => return None,
    }
    Some(Parts { negative, mantissa, exponent, cut })
}

/// Saturates: an exponent past `i64` decides the same as its limit.
fn parse_exponent(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] | digits => (false, digits),
    };
    if digits.is_empty() {
        return None;
    }
    let mut exponent = 0_i64;
    for byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        exponent = exponent.saturating_mul(10).saturating_add(i64::from(digit));
    }
    // Half of the range leaves room for the point and the shift.
    let exponent = exponent.min(i64::MAX / 2);
    Some(if negative { -exponent } else { exponent })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_exactly() {
        let exact = |text: &str, shift| parse_scaled(text, shift, Digits::MustFit);
        for (text, number) in [
            ("0", 0),
            ("-0", 0),
            ("+7", 7),
            ("007", 7),
            ("9007199254740993", 9_007_199_254_740_993),
            ("-9223372036854775808", i128::from(i64::MIN)),
            ("1.0", 1),
            ("1e3", 1000),
            ("1.5E+1", 15),
            ("1500e-2", 15),
            ("0.00e400", 0),
            ("0e99999999999999999999", 0),
            ("99999999999999999999999999999999999999", 10_i128.pow(38) - 1),
            ("1.0000000000000000000000000000000000000000000000000000", 1),
            ("10000000000000000000000000000000000000000000000000000e-50", 100),
            (".5e1", 5),
            ("5.", 5),
        ] {
            assert_eq!(exact(text, 0), Ok(number), "{text}");
        }
        for text in ["1.5", "1e-1", "0.1e-99999999999999999999", "123456789012345678901234567890123456789.5e-38"] {
            assert_eq!(exact(text, 0), Err(NumberFault::Inexact), "{text}");
        }
        for text in ["1e400", "1e99999999999999999999", "999999999999999999999999999999999999999", "1e39"] {
            assert_eq!(exact(text, 0), Err(NumberFault::TooLarge), "{text}");
        }
        for text in
            ["", "-", ".", "1e", "1e+", "0x10", "1 ", " 1", "1_000", "1,000", "NaN", "inf", "1.2.3", "--1", "e5"]
        {
            assert_eq!(exact(text, 0), Err(NumberFault::NotANumber), "{text}");
            assert!(!is_number(text), "{text}");
        }
        assert_eq!(exact("12.34", 2), Ok(1234));
        assert_eq!(exact("12.345", 2), Err(NumberFault::Inexact));
    }

    #[test]
    fn floor_goes_toward_the_smaller_number() {
        let floor = |text: &str, shift| parse_scaled(text, shift, Digits::Floor);
        assert_eq!(floor("1999", -3), Ok(1));
        assert_eq!(floor("-1999", -3), Ok(-2));
        assert_eq!(floor("-2000", -3), Ok(-2));
        assert_eq!(floor("-1e-300", 0), Ok(-1));
        assert_eq!(floor("1e-300", 0), Ok(0));
        assert_eq!(floor("1.00000000000000000000000000000000000000000000009", 6), Ok(1_000_000));
        assert_eq!(floor("-1.00000000000000000000000000000000000000000000009", 6), Ok(-1_000_001));
    }

    #[test]
    fn the_short_way_agrees_with_the_long_one() {
        for text in ["0", "-0", "5", "-17", "999999999999999999", "-999999999999999999", "000123"] {
            assert_eq!(parse_short(text).map(i128::from), parse_scaled(text, 0, Digits::MustFit).ok(), "{text}");
        }
        for text in ["", "-", "+1", "1.0", "1000000000000000000", "a"] {
            assert_eq!(parse_short(text), None, "{text}");
        }
    }
}
