//! `/metrics`: Prometheus text 0.0.4, OpenMetrics 1.0 or Prometheus' protobuf, whichever the client prefers.
//!
//! In: the signals, the registry's families, those of the request layer, and an `Accept` header. Out: a body and its content type. Never: an
//! error because one family is odd.
//!
//! The three differ in what they can say: only protobuf has native histograms, and text has no exemplars.

use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::Registry;
#[cfg(feature = "adapter")]
use prometheus::proto::MetricFamily;

use super::collector::SignalCollector;
use super::http_layer::{Exemplars, HttpLayer};
use crate::signals::Family;
use crate::signals::exponential::Snapshot;
use crate::time::Timestamp;

#[cfg(feature = "adapter")]
mod family_set;
mod protobuf;
mod text;

#[cfg(feature = "adapter")]
pub(super) use family_set::FamilySet;
#[cfg(test)]
pub(super) use text::Writer as Text;

/// A format that can be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// <https://prometheus.io/docs/instrumenting/exposition_formats/>
    Text,
    /// <https://prometheus.io/docs/specs/om/open_metrics_spec/>
    OpenMetrics,
    /// `io.prometheus.client.MetricFamily` of <https://github.com/prometheus/client_model>, each after its length.
    Protobuf,
}

/// What a media range of an `Accept` header says besides its type.
#[derive(Default)]
struct Parameters<'a> {
    version: Option<&'a str>,
    message: Option<&'a str>,
    encoding: Option<&'a str>,
}

impl Format {
    /// What an `Accept` header prefers. Without a header, or if it names none of the three: text.
    pub(super) fn negotiate(accept: Option<&str>) -> Self {
        let mut best = (Self::Text, 0.0);
        for range in accept.unwrap_or_default().split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media_type = parts.next().unwrap_or_default();
            let (mut quality, mut parameters) = (1.0_f32, Parameters::default());
            for (name, value) in parts.filter_map(|part| part.split_once('=')) {
                let value = value.trim().trim_matches('"');
                match name.trim() {
                    name if name.eq_ignore_ascii_case("q") => {
                        quality = value.parse().unwrap_or(0.0);
                    }
                    name if name.eq_ignore_ascii_case("version") => {
                        parameters.version = Some(value);
                    }
                    name if name.eq_ignore_ascii_case("proto") => parameters.message = Some(value),
                    name if name.eq_ignore_ascii_case("encoding") => {
                        parameters.encoding = Some(value);
                    }
                    _ => {}
                }
            }
            if let Some(format) = Self::of_media_type(media_type, &parameters)
                && quality > best.1
            {
                best = (format, quality);
            }
        }
        best.0
    }

    fn of_media_type(media_type: &str, parameters: &Parameters<'_>) -> Option<Self> {
        let is = |known: &str| media_type.eq_ignore_ascii_case(known);
        let Parameters { version, message, encoding } = *parameters;
        if is("text/*") || is("*/*") {
            Some(Self::Text)
        } else if is("text/plain") {
            matches!(version, None | Some("0.0.4")).then_some(Self::Text)
        } else if is("application/openmetrics-text") {
            matches!(version, None | Some("1.0.0")).then_some(Self::OpenMetrics)
        } else {
            let families = message == Some("io.prometheus.client.MetricFamily");
            let named = is("application/vnd.google.protobuf") && families;
            (named && encoding == Some("delimited")).then_some(Self::Protobuf)
        }
    }

    /// The `Content-Type` of a body in this format.
    pub(super) const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Protobuf => {
                "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; \
                 encoding=delimited"
            }
        }
    }
}

/// Reads `accept` as the header: what is answered is what its own content type asks for. For fuzzing.
#[cfg(any(fuzzing, test))]
pub fn read_any_accept(accept: &str) {
    let format = Format::negotiate(Some(accept));
    assert_eq!(Format::negotiate(Some(format.content_type())), format);
}

/// Families in the text format.
#[cfg(feature = "adapter")]
pub(super) fn text_of(families: &[MetricFamily]) -> String {
    let mut writer = text::Writer::default();
    writer.begin(false);
    families.iter().for_each(|family| writer.gathered(family));
    writer.finish()
}

/// An eighth of room for what is new.
const fn with_room(size: usize) -> usize {
    size + size / 8
}

/// Takes series of gauges and counters. Those of one family come one after the other.
pub(super) trait Sink {
    /// One label value per label name of the family, in that order. `at` where the value was not true just now.
    fn number(
        &mut self,
        family: &'static Family,
        labels: &[&str],
        value: f64,
        at: Option<Timestamp>,
    );
}

/// Takes series of histograms too.
pub(super) trait HistogramSink: Sink {
    fn histogram(
        &mut self,
        family: &'static Family,
        labels: &[&str],
        durations: &Snapshot,
        exemplars: &Exemplars,
    );
}

/// Everything that a scrape gets. Cheap to clone.
///
/// A scrape allocates its body and nothing else, as long as the service registers no metrics: what it reads into and what it
/// writes with is kept from one to the next. No value is.
#[derive(Clone, Debug)]
pub(super) struct Exposition {
    registry: Registry,
    requests: HttpLayer,
    scrape: Arc<Mutex<Scrape>>,
}

/// What one scrape at a time uses.
#[derive(Debug)]
struct Scrape {
    signals: SignalCollector,
    text: text::Writer,
    protobuf: protobuf::Writer,
}

impl Exposition {
    pub(super) fn new(registry: Registry, requests: HttpLayer, signals: SignalCollector) -> Self {
        let (text, protobuf) = (text::Writer::default(), protobuf::Writer::default());
        Self {
            registry,
            requests,
            scrape: Arc::new(Mutex::new(Scrape { signals, text, protobuf })),
        }
    }

    /// Runs all collectors and writes what they have.
    pub(super) fn body(&self, format: Format) -> Vec<u8> {
        // First, and without the lock: it may wait for collectors of the service.
        let registered = self.registry.gather();
        let Scrape { signals, text, protobuf } = &mut *self.scrape.lock();
        match format {
            Format::Text | Format::OpenMetrics => {
                text.begin(format == Format::OpenMetrics);
                signals.write(text);
                registered.iter().for_each(|family| text.gathered(family));
                self.requests.write(text);
                text.finish().into_bytes()
            }
            Format::Protobuf => {
                protobuf.begin();
                signals.write(protobuf);
                registered.iter().for_each(|family| protobuf.gathered(family));
                self.requests.write(protobuf);
                protobuf.finish()
            }
        }
    }
}

/// What `write` writes, as text.
#[cfg(test)]
pub(super) fn written(open: bool, write: impl FnOnce(&mut Text)) -> String {
    let mut writer = Text::default();
    writer.begin(open);
    write(&mut writer);
    writer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_accept(accept: Option<&str>, expected: Format) {
        assert_eq!(Format::negotiate(accept), expected, "{accept:?}");
    }

    #[test]
    fn the_clients_preference_decides() {
        check_accept(None, Format::Text);
        check_accept(Some("*/*"), Format::Text);
        // Prometheus 3.5 with native histograms off.
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
                          application/openmetrics-text;version=0.0.1;q=0.4,\
                          text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,\
                          text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        check_accept(Some(prometheus), Format::OpenMetrics);
        check_accept(Some("text/plain;q=0.9, application/openmetrics-text;q=0.2"), Format::Text);
        check_accept(Some("application/openmetrics-text; version=0.0.1"), Format::Text);
        check_accept(Some("application/openmetrics-text; version=\"1.0.0\""), Format::OpenMetrics);
        check_accept(Some("application/openmetrics-text;q=0"), Format::Text);
        check_accept(Some("application/json"), Format::Text);
        check_accept(Some(";;,q=,;"), Format::Text);
    }

    #[test]
    fn protobuf_is_for_those_who_name_message_and_encoding() {
        // Prometheus 3.5 with native histograms on.
        let prometheus = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;\
                          encoding=delimited;q=0.6,\
                          application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
                          text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        check_accept(Some(prometheus), Format::Protobuf);
        check_accept(Some(Format::Protobuf.content_type()), Format::Protobuf);
        check_accept(Some("application/vnd.google.protobuf"), Format::Text);
        let text = "application/vnd.google.protobuf;encoding=text;\
                    proto=io.prometheus.client.MetricFamily";
        check_accept(Some(text), Format::Text);
    }
}
