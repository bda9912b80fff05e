//! `/metrics`: Prometheus text 0.0.4, OpenMetrics 1.0 or Prometheus' protobuf, whichever the client prefers.
//!
//! In: the registry's families, those of the request layer, and an `Accept` header. Out: a body and its content type. Never: an
//! error because one family is odd.
//!
//! The three differ in what they can say: only protobuf has native histograms, and text has no exemplars.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus::Registry;
use prometheus::proto::MetricFamily;

use super::http_layer::{Exemplars, HttpLayer};
use crate::signals::Family;
use crate::signals::exponential::Snapshot;

mod protobuf;
mod text;

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
            let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
            let (mut quality, mut parameters) = (1.0_f32, Parameters::default());
            for (name, value) in parts.filter_map(|part| part.split_once('=')) {
                let value = value.trim().trim_matches('"');
                match name.trim().to_ascii_lowercase().as_str() {
                    "q" => quality = value.parse().unwrap_or(0.0),
                    "version" => parameters.version = Some(value),
                    "proto" => parameters.message = Some(value),
                    "encoding" => parameters.encoding = Some(value),
                    _ => {}
                }
            }
            if let Some(format) = Self::of_media_type(&media_type, &parameters)
                && quality > best.1
            {
                best = (format, quality);
            }
        }
        best.0
    }

    fn of_media_type(media_type: &str, parameters: &Parameters<'_>) -> Option<Self> {
        match (media_type, parameters.version) {
            ("application/openmetrics-text", None | Some("1.0.0")) => Some(Self::OpenMetrics),
            ("text/plain", None | Some("0.0.4")) | ("text/*" | "*/*", _) => Some(Self::Text),
            ("application/vnd.google.protobuf", _) => {
                let families = parameters.message == Some("io.prometheus.client.MetricFamily");
                (families && parameters.encoding == Some("delimited")).then_some(Self::Protobuf)
            }
            _ => None,
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

    fn encode(self, families: &[MetricFamily], requests: &HttpLayer, size: usize) -> Vec<u8> {
        match self {
            Self::Text | Self::OpenMetrics => {
                let mut writer = text::Writer::new(self == Self::OpenMetrics, size);
                families.iter().for_each(|family| writer.gathered(family));
                requests.write(&mut writer);
                writer.finish()
            }
            Self::Protobuf => {
                let mut writer = protobuf::Writer::new(size);
                families.iter().for_each(|family| writer.gathered(family));
                requests.write(&mut writer);
                writer.finish()
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
    let mut writer = text::Writer::new(false, 16 * 1024);
    families.iter().for_each(|family| writer.gathered(family));
    String::from_utf8(writer.finish()).expect("names, labels and numbers are UTF-8")
}

/// Takes the families that are written without going through the registry, each with its series.
pub(super) trait Sink {
    /// A new family; the series that follow are its own.
    fn family(&mut self, family: &Family);

    /// The value of a series of a gauge or counter. One label value per label name of the family, in that order.
    fn number(&mut self, labels: &[&str], value: f64);

    /// The counts of a series of a histogram.
    fn histogram(&mut self, labels: &[&str], durations: &Snapshot, exemplars: &Exemplars);
}

/// Everything that a scrape gets. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Exposition {
    registry: Registry,
    requests: HttpLayer,
    /// Of the last body, so that the next is allocated once.
    size: Arc<AtomicUsize>,
}

impl Exposition {
    pub(super) fn new(registry: Registry, requests: HttpLayer) -> Self {
        Self { registry, requests, size: Arc::new(AtomicUsize::new(16 * 1024)) }
    }

    /// Runs all collectors and writes what they have.
    pub(super) fn body(&self, format: Format) -> Vec<u8> {
        let size = self.size.load(Ordering::Relaxed);
        // An eighth of room for what is new.
        let body = format.encode(&self.registry.gather(), &self.requests, size + size / 8);
        self.size.store(body.len(), Ordering::Relaxed);
        body
    }
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
