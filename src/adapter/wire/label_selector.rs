//! `metav1.LabelSelector`: a selector as an object holds it, made from its query form.
//!
//! In: a parsed [`Selector`]. Out: the same requirements as `matchLabels` and `matchExpressions`. Never: one that picks
//! something else. Source: apimachinery `pkg/apis/meta/v1/helpers.go`, `ParseToLabelSelector`.

use std::collections::BTreeMap;

use serde::Serialize;

use super::protobuf::Message;
use crate::sample::{Operator, Selector};

/// A selector in the form of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LabelSelector {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    match_labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    match_expressions: Vec<Expression>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Expression {
    key: String,
    operator: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    values: Vec<String>,
}

/// Why a selector has no such form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelSelectorError {
    /// `<` or `>`.
    #[error("{operator:?} is not supported in label selectors: {key:?}")]
    Comparison {
        /// The label that is compared.
        key: String,
        /// `<` or `>`.
        operator: &'static str,
    },
}

impl LabelSelector {
    /// `None` for a selector without requirements.
    ///
    /// # Errors
    /// [`LabelSelectorError::Comparison`] for `<` and `>`, which only the query form has.
    pub fn of(selector: &Selector) -> Result<Option<Self>, LabelSelectorError> {
        let mut made = Self::default();
        for requirement in selector.requirements() {
            let (key, values) = (requirement.key, requirement.values);
            let operator = match requirement.operator {
                Operator::In => "In",
                Operator::NotIn => "NotIn",
                Operator::Exists => "Exists",
                Operator::Absent => "DoesNotExist",
                comparison @ (Operator::Greater | Operator::Less) => {
                    let operator = if comparison == Operator::Less { "<" } else { ">" };
                    return Err(LabelSelectorError::Comparison { key: key.to_owned(), operator });
                }
            };
            match values.as_slice() {
                [value] if operator == "In" && !made.match_labels.contains_key(key) => {
                    made.match_labels.insert(key.to_owned(), (*value).to_owned());
                }
                values => made.match_expressions.push(Expression {
                    key: key.to_owned(),
                    operator,
                    values: values.iter().map(|&value| value.to_owned()).collect(),
                }),
            }
        }
        Ok(Some(made).filter(|made| *made != Self::default()))
    }

    pub(super) fn write(&self, message: &mut Message) {
        for (name, value) in &self.match_labels {
            message.message(1, |entry| {
                entry.text(1, name);
                entry.text(2, value);
            });
        }
        for expression in &self.match_expressions {
            message.message(2, |wire| {
                wire.text(1, &expression.key);
                wire.text(2, expression.operator);
                expression.values.iter().for_each(|value| wire.text(3, value));
            });
        }
    }
}
