//! In which form an answer is wanted.
//!
//! In: the text of an `Accept` header. Out: one form that it admits. Never: a form that it does not name, and never protobuf
//! unless it is named. Sources: apiserver `pkg/endpoints/handlers/negotiation/negotiate.go`, munnerz/goautoneg.

use super::Encoding;

/// The form of an answer where a table for people is served too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// The objects themselves.
    Objects(Encoding),
    /// A `meta.k8s.io/v1` `Table` in JSON, which `kubectl get` asks for.
    Table,
}

/// Nothing that the header names is served: 406.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "only the following media types are accepted: application/json, application/vnd.kubernetes.protobuf"
)]
pub struct NotAcceptable;

/// What kube-controller-manager sends with every read (client-go `rest/request.go`): it need not be taken apart each time.
const OF_AN_HPA: &str = "application/vnd.kubernetes.protobuf, */*";

/// One element of the header.
struct Clause<'a> {
    main: &'a str,
    sub: &'a str,
    quality: f64,
    /// `as`, `g` and `v`: what the objects are to be turned into.
    convert: [Option<&'a str>; 3],
    /// Asks for something else that no answer here can be: a version of the group's own choice (`sv`).
    foreign: bool,
}

impl Encoding {
    /// The encoding for an `Accept` header; of several such headers the first counts, as in Kubernetes. JSON without one.
    ///
    /// # Errors
    /// [`NotAcceptable`] if it admits neither.
    pub fn negotiate(accept: Option<&str>) -> Result<Self, NotAcceptable> {
        if accept == Some(OF_AN_HPA) {
            return Ok(Self::Protobuf);
        }
        negotiate(accept, |clause| clause.encoding()).map(|encoding| encoding.unwrap_or(Self::Json))
    }
}

impl Form {
    /// As [`Encoding::negotiate`], where tables are served too.
    ///
    /// # Errors
    /// [`NotAcceptable`] if it admits nothing that is served.
    pub fn negotiate(accept: Option<&str>) -> Result<Self, NotAcceptable> {
        let form = |clause: &Clause<'_>| match clause.convert {
            [Some("Table"), Some("meta.k8s.io"), Some("v1")] if !clause.foreign => {
                clause.admits("application", "json").then_some(Self::Table)
            }
            _ => clause.encoding().map(Self::Objects),
        };
        negotiate(accept, form).map(|form| form.unwrap_or(Self::Objects(Encoding::Json)))
    }
}

/// The first form by quality, then by how exactly it is named, then by place; `None` for no header.
fn negotiate<T>(
    accept: Option<&str>,
    form: impl FnMut(&Clause<'_>) -> Option<T>,
) -> Result<Option<T>, NotAcceptable> {
    let Some(accept) = accept.filter(|accept| !accept.is_empty()) else { return Ok(None) };
    let mut clauses: Vec<Clause<'_>> = accept.split(',').filter_map(Clause::parse).collect();
    clauses.retain(|clause| clause.quality > 0.0);
    let wildcards = |clause: &Clause<'_>| (clause.main == "*", clause.sub == "*");
    clauses.sort_by(|a, b| {
        b.quality.total_cmp(&a.quality).then_with(|| wildcards(a).cmp(&wildcards(b)))
    });
    clauses.iter().find_map(form).map(Some).ok_or(NotAcceptable)
}

impl<'a> Clause<'a> {
    /// `None` for what is no media type; what stands beside it counts.
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let (main, sub) = match parts.next()?.split_once('/') {
            Some((main, sub)) if !sub.contains('/') => (main.trim(), sub.trim()),
            None if text.trim() == "*" => ("*", "*"),
            _ => return None,
        };
        let mut clause = Self { main, sub, quality: 1.0, convert: [None; 3], foreign: false };
        for (name, value) in parts.filter_map(|parameter| parameter.split_once('=')) {
            let value = value.trim();
            match name.trim() {
                "q" => clause.quality = value.parse().unwrap_or(0.0),
                "as" => clause.convert[0] = Some(value),
                "g" => clause.convert[1] = Some(value),
                "v" => clause.convert[2] = Some(value),
                "sv" => clause.foreign = true,
                _ => {}
            }
        }
        Some(clause)
    }

    fn admits(&self, main: &str, sub: &str) -> bool {
        (self.main == main && (self.sub == sub || self.sub == "*"))
            || (self.main == "*" && self.sub == "*")
    }

    fn encoding(&self) -> Option<Encoding> {
        let wanted = if self.foreign || self.convert.iter().any(Option::is_some) {
            return None;
        } else if self.admits("application", "json") {
            Encoding::Json
        } else if self.admits("application", "vnd.kubernetes.protobuf") {
            Encoding::Protobuf
        } else {
            return None;
        };
        Some(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: Result<Encoding, NotAcceptable> = Ok(Encoding::Json);
    const PROTOBUF: Result<Encoding, NotAcceptable> = Ok(Encoding::Protobuf);

    /// What apiserver 0.37.2 says of the same headers for its JSON and protobuf serializers, but for `q=0`, which it takes
    /// for a small quality and RFC 9110 for a refusal.
    #[test]
    fn an_accept_header_is_read_as_kubernetes_reads_it() {
        for (accept, expected) in [
            ("", JSON),
            ("application/vnd.kubernetes.protobuf, */*", PROTOBUF),
            ("application/vnd.kubernetes.protobuf,application/json", PROTOBUF),
            ("application/json, application/vnd.kubernetes.protobuf", JSON),
            ("application/vnd.kubernetes.protobuf;q=0.5, application/json;q=0.9", JSON),
            ("application/json;q=0.1,application/vnd.kubernetes.protobuf;q=0.2", PROTOBUF),
            ("*/*", JSON),
            ("*", JSON),
            ("application/*", JSON),
            ("*/*, application/vnd.kubernetes.protobuf", PROTOBUF),
            ("application/json;charset=utf-8", JSON),
            ("application/json; pretty=1", JSON),
            (" application / json ", JSON),
            ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", JSON),
            ("application/json;as=Table;v=v1;g=meta.k8s.io", Err(NotAcceptable)),
            (
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
                Err(NotAcceptable),
            ),
            ("application/json;sv=v1", Err(NotAcceptable)),
            ("text/html, application/xml;q=0.9", Err(NotAcceptable)),
            ("text/html, */*;q=0.1", JSON),
            ("application/json;q=0", Err(NotAcceptable)),
            ("application", Err(NotAcceptable)),
            ("application/json/x, application/vnd.kubernetes.protobuf", PROTOBUF),
            (", ,", Err(NotAcceptable)),
            ("application/yaml", Err(NotAcceptable)),
        ] {
            assert_eq!(Encoding::negotiate(Some(accept)), expected, "{accept:?}");
        }
        assert_eq!(Encoding::negotiate(None), JSON);
    }

    #[test]
    fn a_table_is_given_where_it_is_asked_for_in_the_version_that_is_served() {
        let objects = Ok(Form::Objects(Encoding::Json));
        for (accept, expected) in [
            ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", Ok(Form::Table)),
            (
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
                Ok(Form::Table),
            ),
            ("application/json, application/json;as=Table;v=v1;g=meta.k8s.io", objects),
            ("application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json", objects),
            (
                "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
                Err(NotAcceptable),
            ),
            ("application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io", Err(NotAcceptable)),
            (
                "application/vnd.kubernetes.protobuf,application/json",
                Ok(Form::Objects(Encoding::Protobuf)),
            ),
            ("*/*", objects),
        ] {
            assert_eq!(Form::negotiate(Some(accept)), expected, "{accept:?}");
        }
        assert_eq!(Form::negotiate(None), objects);
    }
}
