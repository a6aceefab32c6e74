//! Amounts of resources: `100m`, `1.5Gi`, `2e3`. Exact fixed-point arithmetic in nano-units.
//!
//! Source: apimachinery `resource.Quantity`. Parts smaller than a nano-unit round away from zero, binary
//! quantities are capped at 2^63-1, and printing is canonical: no fraction, largest suffix that loses nothing.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde_json::Value;

const NANO: i128 = 1_000_000_000;
const MILLI_IN_NANO: i128 = 1_000_000;
/// Largest value of a binary quantity, in nano-units.
const MAX_BINARY: i128 = i64::MAX as i128 * NANO;

/// Why a text is not a quantity, in upstream's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Neither number nor suffix.
    #[error(
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    )]
    Format,
    /// Something like `1.5.5`.
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    /// Something like `1Xi`.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// How a quantity was written, and so how it is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// `n u m k M G T P E`.
    #[default]
    DecimalSi,
    /// `Ki Mi Gi Ti Pi Ei`.
    BinarySi,
    /// `e3`.
    DecimalExponent,
}

/// An amount. Compares by value: `1` equals `1000m`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl Quantity {
    /// Nothing, printed as `0`.
    pub const ZERO: Self = Self {
        nanos: 0,
        format: Format::DecimalSi,
    };

    /// Whole units (cores, pods, bytes), printed decimally.
    #[must_use]
    pub const fn from_units(units: i64) -> Self {
        Self {
            nanos: units as i128 * NANO,
            format: Format::DecimalSi,
        }
    }

    /// Thousandths, as CPU is counted.
    #[must_use]
    pub const fn from_millis(millis: i64) -> Self {
        Self {
            nanos: millis as i128 * MILLI_IN_NANO,
            format: Format::DecimalSi,
        }
    }

    /// Bytes, printed with `Ki`, `Mi`, ...
    #[must_use]
    pub const fn from_bytes(bytes: i64) -> Self {
        Self {
            nanos: bytes as i128 * NANO,
            format: Format::BinarySi,
        }
    }

    /// Reads a JSON string or number.
    ///
    /// # Errors
    /// As parsing; other JSON types are [`QuantityError::Format`].
    pub fn from_value(value: &Value) -> Result<Self, QuantityError> {
        match value {
            Value::String(text) => text.trim().parse(),
            Value::Number(number) => number.to_string().parse(),
            Value::Null => Ok(Self::ZERO),
            _ => Err(QuantityError::Format),
        }
    }

    /// How it prints.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// The exact value in nano-units.
    #[must_use]
    pub fn nanos(&self) -> i128 {
        self.nanos
    }

    /// Whole units, rounded away from zero.
    #[must_use]
    pub fn value(&self) -> i64 {
        saturate(divide_up(self.nanos, NANO))
    }

    /// Thousandths, rounded away from zero.
    #[must_use]
    pub fn milli_value(&self) -> i64 {
        saturate(divide_up(self.nanos, MILLI_IN_NANO))
    }

    /// For scores and ratios.
    #[must_use]
    pub fn as_f64(&self) -> f64 {
        self.nanos as f64 / NANO as f64
    }

    /// Whether it is nothing.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// Whether it is below nothing.
    #[must_use]
    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    fn combine(self, other: Self, nanos: i128) -> Self {
        let format = if self.is_zero() {
            other.format
        } else {
            self.format
        };
        Self { nanos, format }
    }
}

impl std::ops::Add for Quantity {
    type Output = Self;
    /// The sum, printed like the left side unless that is zero.
    fn add(self, other: Self) -> Self {
        self.combine(other, self.nanos.saturating_add(other.nanos))
    }
}

impl std::ops::Sub for Quantity {
    type Output = Self;
    /// The difference, printed like the left side unless that is zero.
    fn sub(self, other: Self) -> Self {
        self.combine(other, self.nanos.saturating_sub(other.nanos))
    }
}

impl std::ops::Neg for Quantity {
    type Output = Self;
    fn neg(self) -> Self {
        Self {
            nanos: self.nanos.saturating_neg(),
            ..self
        }
    }
}

impl std::ops::AddAssign for Quantity {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl std::ops::SubAssign for Quantity {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

impl std::iter::Sum for Quantity {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, |a, b| a + b)
    }
}

/// Division that rounds away from zero.
fn divide_up(value: i128, by: i128) -> i128 {
    let whole = value / by;
    if value % by == 0 {
        whole
    } else {
        whole + value.signum()
    }
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

// === reading ===

#[derive(Clone, Copy)]
enum Scale {
    Ten(i32),
    Two(u32),
}

fn scale_of(suffix: &str) -> Option<(Scale, Format)> {
    let decimal = |power| Some((Scale::Ten(power), Format::DecimalSi));
    let binary = |power| Some((Scale::Two(power), Format::BinarySi));
    match suffix {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let exponent: i64 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            // Beyond +-100 the value saturates or rounds up to 1n anyway.
            Some((
                Scale::Ten(exponent.clamp(-100, 100) as i32),
                Format::DecimalExponent,
            ))
        }
    }
}

/// Decimal digits read into `mantissa * 10^exponent`, plus whether non-zero digits were dropped.
struct Digits {
    mantissa: i128,
    exponent: i32,
    inexact: bool,
}

fn read_digits(whole: &str, fraction: &str, limit: i128) -> Digits {
    let mut digits = Digits {
        mantissa: 0,
        exponent: 0,
        inexact: false,
    };
    for (part, step) in [(whole, 0), (fraction, -1)] {
        for byte in part.bytes() {
            let digit = i128::from(byte - b'0');
            if digits.mantissa < limit {
                digits.mantissa = digits.mantissa * 10 + digit;
                digits.exponent += step;
            } else {
                digits.inexact |= digit != 0;
                digits.exponent += step + 1;
            }
        }
    }
    digits
}

/// `value * 10^power`, rounded up (value is not negative), `None` on overflow.
fn times_power_of_ten(value: i128, power: i32) -> Option<i128> {
    if value == 0 {
        return Some(0);
    }
    let factor = 10_i128.checked_pow(power.unsigned_abs());
    match (power >= 0, factor) {
        (true, Some(factor)) => value.checked_mul(factor),
        (true, None) => None,
        (false, Some(factor)) => Some(divide_up(value, factor)),
        (false, None) => Some(1),
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        if text.is_empty() {
            return Err(QuantityError::Format);
        }
        let (negative, rest) = match text.as_bytes()[0] {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let whole_end = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (whole, rest) = rest.split_at(whole_end);
        let (fraction, suffix) = match rest.strip_prefix('.') {
            Some(tail) => tail.split_at(
                tail.find(|c: char| !c.is_ascii_digit())
                    .unwrap_or(tail.len()),
            ),
            None => ("", rest),
        };
        check_suffix_letters(suffix)?;
        if whole.is_empty() && fraction.is_empty() {
            return Err(QuantityError::Numeric);
        }
        let (scale, mut format) = scale_of(suffix).ok_or(QuantityError::Suffix)?;
        let mut nanos = match scale {
            Scale::Ten(power) => {
                decimal_nanos(&read_digits(whole, fraction, 10_i128.pow(36)), power)
            }
            Scale::Two(power) => {
                binary_nanos(&read_digits(whole, fraction, 10_i128.pow(18)), power)
            }
        };
        if format == Format::BinarySi {
            nanos = nanos.min(MAX_BINARY);
            if nanos > 0 && nanos < NANO {
                format = Format::DecimalSi;
            }
        }
        Ok(Self {
            nanos: if negative { -nanos } else { nanos },
            format,
        })
    }
}

/// The shape of a suffix: letters, then possibly a signed number.
fn check_suffix_letters(suffix: &str) -> Result<(), QuantityError> {
    let tail = suffix.trim_start_matches(|c| "eEinumkKMGTP".contains(c));
    let tail = tail.strip_prefix(['-', '+']).unwrap_or(tail);
    if tail.bytes().all(|b| b.is_ascii_digit()) {
        Ok(())
    } else {
        Err(QuantityError::Format)
    }
}

fn decimal_nanos(digits: &Digits, power: i32) -> i128 {
    let exact = times_power_of_ten(
        digits.mantissa,
        digits.exponent.saturating_add(power).saturating_add(9),
    );
    exact
        .unwrap_or(i128::MAX)
        .saturating_add(i128::from(digits.inexact && exact.is_some()))
}

fn binary_nanos(digits: &Digits, power: u32) -> i128 {
    let scaled = digits.mantissa.checked_mul(1 << power);
    let exact = scaled.and_then(|s| times_power_of_ten(s, digits.exponent.saturating_add(9)));
    exact
        .unwrap_or(i128::MAX)
        .saturating_add(i128::from(digits.inexact && exact.is_some()))
}

// === printing ===

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let small = self.nanos > -1024 * NANO && self.nanos < 1024 * NANO;
        let whole = self.nanos % NANO == 0;
        match self.format {
            // Fractions of a byte are shown in the decimal form rather than lost.
            Format::BinarySi if !small && whole => self.fmt_binary(f),
            Format::DecimalExponent => self.fmt_decimal(f, true),
            _ => self.fmt_decimal(f, false),
        }
    }
}

impl Quantity {
    fn fmt_binary(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SUFFIXES: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
        let mut units = self.nanos / NANO;
        let mut index = 0;
        while index + 1 < SUFFIXES.len() && units % 1024 == 0 {
            units /= 1024;
            index += 1;
        }
        write!(f, "{units}{}", SUFFIXES[index])
    }

    fn fmt_decimal(&self, f: &mut fmt::Formatter<'_>, exponent_form: bool) -> fmt::Result {
        const SUFFIXES: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
        let mut mantissa = self.nanos;
        let mut index = 0;
        while mantissa % 1000 == 0 && (exponent_form || index + 1 < SUFFIXES.len()) {
            mantissa /= 1000;
            index += 1;
        }
        if exponent_form {
            let exponent = index as i32 * 3 - 9;
            return if exponent == 0 {
                write!(f, "{mantissa}")
            } else {
                write!(f, "{mantissa}e{exponent}")
            };
        }
        write!(f, "{mantissa}{}", SUFFIXES[index])
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn q(text: &str) -> Quantity {
        text.parse().unwrap()
    }

    #[test]
    fn quantities_print_canonically() {
        for (text, canonical) in [
            ("0", "0"),
            ("0Ki", "0"),
            ("0.5", "500m"),
            ("1.5", "1500m"),
            ("1000m", "1"),
            ("1.5Gi", "1536Mi"),
            ("0.9Gi", "966367641600m"),
            ("1024Ki", "1Mi"),
            ("1000Ki", "1000Ki"),
            ("512", "512"),
            ("0.5Ki", "512"),
            ("1e3", "1e3"),
            ("12e4", "120e3"),
            ("1E", "1E"),
            ("1E3", "1e3"),
            ("100000", "100k"),
            ("0.1n", "1n"),
            ("-1.5", "-1500m"),
            (".5", "500m"),
            ("5.", "5"),
            ("+7", "7"),
            ("123456789", "123456789"),
            ("9999999999999Ei", "9223372036854775807"),
            ("0.0001Ki", "102400u"),
            ("128974848", "128974848"),
            ("129e6", "129e6"),
            ("123Mi", "123Mi"),
        ] {
            assert_eq!(q(text).to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn bad_quantities_get_upstreams_words() {
        for (text, error) in [
            ("", QuantityError::Format),
            ("1.5.5", QuantityError::Format),
            ("abc", QuantityError::Format),
            ("1 ", QuantityError::Format),
            ("1KiB", QuantityError::Format),
            ("1mm", QuantityError::Suffix),
            ("1i", QuantityError::Suffix),
            (".", QuantityError::Numeric),
            ("m", QuantityError::Numeric),
        ] {
            assert_eq!(text.parse::<Quantity>().unwrap_err(), error, "{text}");
        }
    }

    #[test]
    fn whole_and_milli_values_round_away_from_zero() {
        assert_eq!(q("1001m").value(), 2);
        assert_eq!(q("-1001m").value(), -2);
        assert_eq!(q("1u").milli_value(), 1);
        assert_eq!(q("2").milli_value(), 2000);
    }

    #[test]
    fn a_sum_keeps_the_format_of_its_first_non_zero_part() {
        assert_eq!((q("0") + q("1Gi")).to_string(), "1Gi");
        assert_eq!((q("1Gi") + q("1M")).to_string(), "1074741824");
        assert_eq!(
            [q("100m"), q("200m")]
                .into_iter()
                .sum::<Quantity>()
                .to_string(),
            "300m"
        );
    }

    #[test]
    fn absurd_input_saturates() {
        assert!(q("1e99") > q("1e20"));
        assert_eq!(q("1e-99").to_string(), "1e-9");
        assert!("9".repeat(500).parse::<Quantity>().is_ok());
    }

    proptest! {
        #[test]
        fn printing_and_reading_keep_the_value(nanos in -(1_i128 << 90)..(1_i128 << 90), exponent in any::<bool>()) {
            let format = if exponent { Format::DecimalExponent } else { Format::DecimalSi };
            let quantity = Quantity { nanos, format };
            prop_assert_eq!(q(&quantity.to_string()), quantity);
        }

        #[test]
        fn bytes_keep_their_value(bytes in any::<i64>()) {
            let quantity = Quantity::from_bytes(bytes);
            if bytes > i64::MIN {
                prop_assert_eq!(q(&quantity.to_string()).value(), bytes);
            }
        }

        #[test]
        fn adding_then_subtracting_changes_nothing(a in any::<i64>(), b in any::<i64>()) {
            let (a, b) = (Quantity::from_millis(a), Quantity::from_units(b));
            prop_assert_eq!(a + b - b, a);
        }

        #[test]
        fn reading_never_panics(text in "[-+0-9.eEinumkKMGTP]{0,40}") {
            let _ = text.parse::<Quantity>();
        }
    }
}
