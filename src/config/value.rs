//! One value from its text.
//!
//! In: a text and the [`Kind`] it must have. Out: a typed [`Value`], or one sentence why not. Never: a value outside the range
//! of its kind.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use super::keys::Kind;
use super::{CaptureRule, HttpUrl, HttpUrlError};
use crate::quantity::Quantity;
use crate::units::{Measure as _, Ratio};

/// A value of the table, typed.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Text(String),
    Address(SocketAddr),
    Ip(IpAddr),
    Url(HttpUrl),
    File(PathBuf),
    Duration(Duration),
    /// Bytes, counts and ports.
    Whole(u64),
    Share(Ratio),
    Switch(bool),
    Rules(Vec<CaptureRule>),
}

/// Reads a scalar.
pub(super) fn parse(kind: Kind, text: &str) -> Result<Value, String> {
    match kind {
        Kind::Text if text.is_empty() => Err("must not be empty".to_owned()),
        Kind::Text => Ok(Value::Text(text.to_owned())),
        Kind::DnsName => dns_name(text),
        Kind::Address => text
            .parse()
            .map(Value::Address)
            .map_err(|_| format!("{text:?} is not an address such as 127.0.0.1:9469")),
        Kind::Ip => text
            .parse()
            .map(Value::Ip)
            .map_err(|_| format!("{text:?} is not an IP address such as 0.0.0.0")),
        Kind::Port => match text.parse::<u16>() {
            Ok(port) => Ok(Value::Whole(port.into())),
            _ => Err(format!("{text:?} is not a port (0 to 65535)")),
        },
        Kind::Url => text.parse().map(Value::Url).map_err(|error: HttpUrlError| error.to_string()),
        Kind::File if text.is_empty() => Err("must not be empty".to_owned()),
        Kind::File => Ok(Value::File(PathBuf::from(text))),
        Kind::Duration { min, max } => {
            let duration = duration(text)?;
            if (min..=max).contains(&duration) {
                return Ok(Value::Duration(duration));
            }
            Err(format!("{text} is not between {min:?} and {max:?}"))
        }
        Kind::Bytes { min, max } => whole(bytes(text)?, min, max, text),
        Kind::Count { min, max } => {
            let count = text.parse().map_err(|_| format!("{text:?} is not a whole number"))?;
            whole(count, min, max, text)
        }
        Kind::Share => match text.parse().ok().and_then(|share| Ratio::new(share).ok()) {
            Some(share) if share.get() > 0.0 && share.get() <= 1.0 => Ok(Value::Share(share)),
            _ => Err(format!("{text:?} is not a number above 0 and up to 1")),
        },
        Kind::Switch => match text {
            "true" => Ok(Value::Switch(true)),
            "false" => Ok(Value::Switch(false)),
            _ => Err(format!("{text:?} is neither true nor false")),
        },
        Kind::Choice(words) if words.contains(&text) => Ok(Value::Text(text.to_owned())),
        Kind::Choice(words) => Err(format!("{text:?} is none of {}", words.join(", "))),
        Kind::LogFilter => EnvFilter::try_new(text)
            .map(|_| Value::Text(text.to_owned()))
            .map_err(|error| format!("{text:?} is not a log filter: {error}")),
        Kind::Rules => Err("must be a list of {signal, above, cooldown}".to_owned()),
    }
}

fn whole(number: u64, min: u64, max: u64, text: &str) -> Result<Value, String> {
    if (min..=max).contains(&number) {
        Ok(Value::Whole(number))
    } else {
        Err(format!("{text} is not between {min} and {max}"))
    }
}

/// An RFC 1123 label.
fn dns_name(text: &str) -> Result<Value, String> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let ends = !text.starts_with('-') && !text.ends_with('-');
    if (1..=63).contains(&text.len()) && text.bytes().all(plain) && ends {
        Ok(Value::Text(text.to_owned()))
    } else {
        Err(format!("{text:?} is not a name of lower-case letters, digits and '-'"))
    }
}

/// A number and `ms`, `s`, `m` or `h`. A bare number is refused: its unit would be a guess.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration such as 250ms, 5s, 1m or 1h");
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())
}

/// A whole number of bytes, as Kubernetes writes quantities.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked to be whole, not negative and below 2^53"
)]
fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a number of bytes such as 4Mi or 200k");
    let number = text.parse::<Quantity>().map_err(|_| wrong())?.to_f64();
    let exact = (0.0..9.0e15).contains(&number) && number.fract() == 0.0;
    if exact { Ok(number as u64) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kind: Kind, text: &str, expected: Result<Value, &str>) {
        assert_eq!(parse(kind, text), expected.map_err(str::to_owned), "{text:?}");
    }

    #[test]
    fn a_value_names_its_unit() {
        let kind = Kind::Duration { min: Duration::ZERO, max: Duration::from_secs(60) };
        check(kind, "250ms", Ok(Value::Duration(Duration::from_millis(250))));
        check(kind, "1m", Ok(Value::Duration(Duration::from_secs(60))));
        check(kind, "5", Err("\"5\" is not a duration such as 250ms, 5s, 1m or 1h"));
        check(kind, "2h", Err("2h is not between 0ns and 60s"));
        let kind = Kind::Bytes { min: 1, max: 1 << 30 };
        check(kind, "4Mi", Ok(Value::Whole(4 << 20)));
        check(kind, "200k", Ok(Value::Whole(200_000)));
        check(kind, "0.5", Err("\"0.5\" is not a number of bytes such as 4Mi or 200k"));
        check(kind, "2Gi", Err("2Gi is not between 1 and 1073741824"));
    }

    #[test]
    fn a_url_with_a_password_is_refused_without_repeating_it() {
        let refused = parse(Kind::Url, "http://me:secret@127.0.0.1/").expect_err("credentials");
        assert_eq!(refused, "a URL must not carry credentials: use a bearer token file");
        let refused = parse(Kind::Url, "127.0.0.1:secret").expect_err("no scheme");
        assert!(!refused.contains("secret"), "{refused}");
        assert!(parse(Kind::Url, "https://127.0.0.1/metrics").is_err());
        assert!(parse(Kind::Url, "http://127.0.0.1:6060/debug/pprof").is_ok());
    }

    #[test]
    fn what_is_no_port_share_or_name_is_refused() {
        for (kind, text) in [
            (Kind::Port, "65536"),
            (Kind::Share, "0"),
            (Kind::Share, "1.5"),
            (Kind::Share, "NaN"),
            (Kind::DnsName, "Shop"),
            (Kind::DnsName, ""),
            (Kind::Address, "9469"),
            (Kind::LogFilter, "headroom=loud"),
            (Kind::Choice(&["off", "on"]), "On"),
        ] {
            assert!(parse(kind, text).is_err(), "{text}");
        }
    }
}
