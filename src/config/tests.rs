//! What the layers say together, and what happens when the file changes.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use prometheus::Registry;

use super::keys::{KEYS, Program};
use super::*;

fn inputs(flags: &[(&'static str, &str)], environment: &[(&str, &str)]) -> Inputs {
    let owned = |(name, text): &(&str, &str)| ((*name).to_owned(), (*text).to_owned());
    Inputs {
        flags: flags.iter().map(|(path, text)| (*path, (*text).to_owned())).collect(),
        environment: environment.iter().map(owned).collect::<BTreeMap<_, _>>(),
        file: Some("/etc/headroom/config.yaml".into()),
    }
}

fn agent(inputs: &Inputs, text: &str) -> Result<AgentConfig, String> {
    load::<AgentConfig>(inputs, Some(text))
        .map(|loaded| loaded.config)
        .map_err(|error| error.to_string())
}

#[test]
fn every_default_of_the_table_builds_both_sections() {
    let nothing = Inputs::default();
    let agent = load::<AgentConfig>(&nothing, None).expect("the agent's defaults").config;
    assert_eq!(agent.bind, "0.0.0.0:9469".parse().expect("an address"));
    assert_eq!(agent.target.metrics, None);
    assert_eq!(agent.capture.ring.window, Duration::from_secs(60));
    assert_eq!(agent.capture.ring.size_bytes, 4 << 20);
    let adapter = load::<AdapterConfig>(&nothing, None).expect("the adapter's defaults").config;
    assert_eq!(adapter.secure_port, 6443);
    assert_eq!(adapter.scrape.series_per_pod, 10_000);
}

/// Each row of the table changes the section that it belongs to: no key is read by nobody.
#[test]
fn every_key_of_the_table_is_read_by_its_section() {
    for key in KEYS {
        let other = match key.kind {
            Kind::Text | Kind::DnsName => "other",
            Kind::Address => "127.0.0.7:1",
            Kind::Ip => "127.0.0.7",
            Kind::Port | Kind::Count { .. } => "77",
            Kind::Url => "http://127.0.0.7/x",
            Kind::File => "/other",
            Kind::Duration { .. } => "7s",
            Kind::Bytes { .. } => "77Ki",
            Kind::Share => "0.7",
            Kind::Switch => "true",
            Kind::Choice(words) => words[0],
            Kind::LogFilter => "trace",
            Kind::Rules => "[{signal: process_threads, above: 1}]",
        };
        let inputs = inputs(&[(key.path, other)], &[]);
        let changed = match key.program() {
            Program::Agent => changes::<AgentConfig>(&inputs),
            Program::Adapter => changes::<AdapterConfig>(&inputs),
        };
        assert!(changed, "{}", key.path);
    }
}

fn changes<T: Section + std::fmt::Debug>(inputs: &Inputs) -> bool {
    let default = load::<T>(&Inputs::default(), None).expect("defaults").config;
    load::<T>(inputs, None).expect("a good value").config != default
}

#[test]
fn a_flag_wins_over_the_environment_that_over_the_file_that_over_the_default() {
    let file = "agent: {target: {timeout: 3s}}";
    let timeout = |flags: &[(&'static str, &str)], environment: &[(&str, &str)], file: &str| {
        agent(&inputs(flags, environment), file).map(|config| config.target.timeout.as_secs())
    };
    let (flag, variable) =
        (("agent.target.timeout", "5s"), ("HEADROOM_AGENT_TARGET_TIMEOUT", "4s"));
    assert_eq!(timeout(&[], &[], ""), Ok(2));
    assert_eq!(timeout(&[], &[], file), Ok(3));
    assert_eq!(timeout(&[], &[variable], file), Ok(4));
    assert_eq!(timeout(&[flag], &[variable], file), Ok(5));
    assert_eq!(timeout(&[], &[("HEADROOM_AGENT_TARGET_TIMEOUT", "")], file), Ok(3));
}

#[test]
fn the_origin_of_each_value_is_known() {
    let inputs = inputs(&[], &[("POD_NAMESPACE", "shop")]);
    let file = "adapter:\n  securePort: 7443\n";
    let loaded = load::<AdapterConfig>(&inputs, Some(file)).expect("a good file");
    let origin = |path: &str| {
        let setting = loaded.settings.iter().find(|setting| setting.key.path == path);
        setting.map(|setting| setting.origin.clone())
    };
    assert_eq!(origin("adapter.securePort"), Some(Origin::File { line: 2 }));
    assert_eq!(origin("adapter.namespace"), Some(Origin::Environment("POD_NAMESPACE")));
    assert_eq!(origin("adapter.serviceName"), Some(Origin::Default));
    assert_eq!(loaded.config.namespace, "shop");
}

#[test]
fn all_problems_of_all_layers_are_reported_at_once_with_line_and_key() {
    let file = "agent:
  bnd: 0.0.0.0:1
  target:
    metrics: ftp://x/
    timeout: 5
  capture:
    ring: {window: 2h}
    rules:
    - {signal: cgroup_memory_working_set_bytes, above: 1Gi}
    - {signal: process_threads, abov: 1}
  debug: {bind: 127.0.0.1:6060, tokenFile: /a, tokenReview: true}
  target.pprof: http://127.0.0.1/
Adapter: {}
";
    let environment = [
        ("HEADROOM_AGENT_TARGET_PID", "none"),
        ("HEADROOM_AGENT_TARGET_PPROF", "http://127.0.0.1:6060/debug/pprof"),
    ];
    let problems = agent(&inputs(&[("agent.bind", "x")], &environment), file);
    let expected = "12 problems in the configuration
  /etc/headroom/config.yaml:2: agent.bnd: unknown key; did you mean agent.bind?
  /etc/headroom/config.yaml:4: agent.target.metrics: only http is spoken with a target in the same pod
  /etc/headroom/config.yaml:5: agent.target.timeout: \"5\" is not a duration such as 250ms, 5s, 1m or 1h
  /etc/headroom/config.yaml:7: agent.capture.ring.window: 2h is not between 1s and 600s
  /etc/headroom/config.yaml:10: agent.capture.rules[1].abov: unknown key; a rule has signal, above and cooldown
  /etc/headroom/config.yaml:10: agent.capture.rules[1]: above is missing
  /etc/headroom/config.yaml:12: agent.target.pprof: a name has no dots; write a map in a map
  /etc/headroom/config.yaml:13: Adapter: unknown key; did you mean adapter?
  flag: agent.bind: \"x\" is not an address such as 127.0.0.1:9469
  HEADROOM_AGENT_TARGET_PID: agent.target.pid: \"none\" is not a whole number
  agent.target.pprof: port 6060 is the sidecar's own (agent.debug.bind)
  agent.debug.tokenFile: excludes agent.debug.tokenReview; set one of them";
    assert_eq!(problems, Err(expected.to_owned()));
}

#[test]
fn a_text_that_is_no_yaml_or_names_a_key_twice_is_one_line() {
    for text in ["agent: [", "agent: {bind: 127.0.0.1:1, bind: 127.0.0.1:2}", "agent: 7", "- a"] {
        let problem = agent(&inputs(&[], &[]), text).expect_err(text);
        assert_eq!(problem.lines().count(), 1, "{problem}");
        assert!(
            problem.starts_with("bad configuration: /etc/headroom/config.yaml:1: "),
            "{problem}"
        );
    }
    assert!(agent(&inputs(&[], &[]), "# nothing\n").is_ok());
    assert!(agent(&inputs(&[], &[]), "agent:\n").is_ok());
}

#[test]
fn values_that_exclude_each_other_are_refused() {
    let problem = agent(&inputs(&[], &[]), "agent: {target: {pid: 7, process: shop}}");
    assert_eq!(
        problem,
        Err("bad configuration: agent.target.pid: excludes agent.target.process; set one of them"
            .to_owned())
    );
}

#[test]
fn a_sidecar_does_not_ask_itself() {
    let file =
        "agent: {bind: 127.0.0.1:9469, target: {metrics: \"http://localhost:9469/metrics\"}}";
    let problem = agent(&inputs(&[], &[]), file).expect_err("its own port");
    assert!(problem.contains("agent.target.metrics: port 9469 is the sidecar's own"), "{problem}");
}

/// The adapter knows neither the flags nor the variables of the sidecar: what these may mend is no problem to it.
#[test]
fn what_the_file_alone_contradicts_is_told_to_the_other_program_too() {
    let adapter = |text: &str| {
        load::<AdapterConfig>(&inputs(&[], &[]), Some(text)).map_err(|error| error.to_string())
    };
    let target = "target: {bearerTokenFile: /t, pprof: \"http://localhost:9469/debug/pprof\"}";
    assert!(adapter(&format!("agent: {{{target}}}")).is_ok());
    let problem = adapter("agent: {target: {pid: 7, process: shop}}").expect_err("two choices");
    assert!(problem.contains("agent.target.pid: excludes agent.target.process"), "{problem}");
}

#[test]
fn a_token_is_not_lent_to_whoever_asks_for_a_profile() {
    let check = |rest: &str, accepted: bool| {
        let token = "bearerTokenFile: /t";
        let text =
            format!("agent:\n  target: {{{token}, pprof: \"http://localhost:6060/\"}}\n{rest}");
        match agent(&inputs(&[], &[]), &text) {
            Ok(_) => assert!(accepted, "{rest}"),
            Err(problem) => {
                assert!(!accepted, "{rest}: {problem}");
                let start = "bad configuration: agent.target.bearerTokenFile: without a token whoever reaches ";
                assert!(problem.starts_with(start), "{problem}");
            }
        }
    };
    check("", false);
    check("  debug: {bind: 10.0.0.1:9470}", false);
    check("  bind: 127.0.0.1:9469\n  debug: {bind: \"[::]:9470\"}", false);
    check("  debug: {bind: 127.0.0.1:9470}", true);
    check("  bind: \"[::1]:9469\"", true);
    check("  debug: {tokenFile: /d}", true);
    check("  debug: {tokenReview: true}", true);
    assert!(
        agent(&inputs(&[], &[]), "agent: {target: {bearerTokenFile: /t}}").is_ok(),
        "no profiles"
    );
}

#[test]
fn a_rule_that_could_never_fire_is_refused_with_the_names_that_can() {
    let rule = |signal: &str| {
        let text = format!("agent: {{capture: {{rules: [{{signal: {signal}, above: 1}}]}}}}");
        agent(&inputs(&[], &[]), &text)
    };
    for signal in RULE_SIGNALS {
        assert!(rule(signal).is_ok(), "{signal}");
    }
    let problem = rule("heap_allocated_bytes").expect_err("not of the kernel");
    assert!(problem.contains("\"heap_allocated_bytes\" is not among"), "{problem}");
    assert!(problem.contains("process_open_fds, "), "{problem}");
}

#[test]
fn of_the_environment_only_what_may_be_ours_is_kept() {
    assert!(std::env::var_os("PATH").is_some());
    let kept = Inputs::from_process(Vec::new(), None).environment;
    let is_ours = |name: &String| {
        name.starts_with("HEADROOM_") || KEYS.iter().any(|key| key.env.contains(&name.as_str()))
    };
    assert!(kept.keys().all(is_ours), "{:?}", kept.keys());
}

#[test]
fn a_rule_of_the_environment_is_yaml() {
    let variable =
        [("HEADROOM_AGENT_CAPTURE_RULES", "[{signal: process_threads, above: 2k, cooldown: 1m}]")];
    let rules = agent(&inputs(&[], &variable), "").expect("a good rule").capture.rules;
    let cooldown = Duration::from_secs(60);
    let rule = CaptureRule { signal: "process_threads".to_owned(), above: 2000.0, cooldown };
    assert_eq!(rules, [rule]);
}

#[test]
fn a_misspelt_variable_is_told_and_those_of_a_service_are_not() {
    let environment = [
        ("HEADROOM_ADAPTER_SECURE_PROT", "1"),
        ("HEADROOM_ADAPTER_PORT", "tcp://10.0.0.1:443"),
        ("HEADROOM_ADAPTER_PORT_443_TCP", "tcp://10.0.0.1:443"),
        ("HEADROOM_ADAPTER_SERVICE_HOST", "10.0.0.1"),
        ("HEADROOM_ADAPTER_SERVICE_PORT_HTTPS", "443"),
        ("HEADROOM_ADAPTER_SECURE_PORT", "7443"),
    ];
    let unknown = inputs(&[], &environment).unknown_variables(Program::Adapter);
    assert_eq!(unknown, ["HEADROOM_ADAPTER_SECURE_PROT"]);
}

/// A ConfigMap volume: `config.yaml -> ..data/config.yaml`, `..data -> ..<time>`, swapped by a rename.
fn publish(volume: &Path, version: &str, text: &str) {
    let directory = volume.join(version);
    std::fs::create_dir(&directory).expect("a new directory");
    std::fs::write(directory.join("config.yaml"), text).expect("a file");
    let new = volume.join("..data_tmp");
    std::os::unix::fs::symlink(version, &new).expect("a link");
    std::fs::rename(&new, volume.join("..data")).expect("a rename");
    let link = volume.join("config.yaml");
    if !link.is_symlink() {
        std::os::unix::fs::symlink("..data/config.yaml", link).expect("a link");
    }
}

fn metric(registry: &Registry, name: &str) -> f64 {
    let families = registry.gather();
    let family = families.iter().find(|family| family.name() == name).expect(name);
    family.get_metric()[0].get_gauge().get_value()
}

#[test]
fn a_swapped_config_map_takes_effect_and_a_bad_one_keeps_the_last_good() {
    let volume = tempfile::tempdir().expect("a temporary directory");
    publish(volume.path(), "..1", "agent: {target: {timeout: 3s}}");
    let registry = Registry::new();
    let inputs = Inputs { file: Some(volume.path().join("config.yaml")), ..Inputs::default() };
    let live = Live::<AgentConfig>::start(inputs, &registry).expect("a good file");
    let mut changes = live.subscribe();
    let swap = |version: &str, text: &str| {
        publish(volume.path(), version, text);
        live.look();
        live.look();
        live.current().config.target.timeout.as_secs()
    };

    let text = "agent: {bind: 127.0.0.1:1, target: {timeout: 4s}}";
    assert_eq!(swap("..2", text), 4);
    assert!(changes.has_changed().expect("live"));
    changes.mark_unchanged();
    assert_eq!(live.current().config.bind.port(), 9469, "needs a start");
    assert!(live.page().contains("agent.bind: 127.0.0.1:1 takes effect at the next start"));

    assert_eq!(swap("..3", "agent: {target: {timeot: 5s}}"), 4);
    assert!(!changes.has_changed().expect("live"));
    assert!(metric(&registry, "headroom_config_reload_success") < 0.5);
    let page = live.page();
    assert!(page.contains("timeot: unknown key; did you mean agent.target.timeout?"), "{page}");
    assert!(page.contains("is NOT in effect"), "{page}");

    assert_eq!(swap("..4", "agent: {target: {timeout: 6s}}"), 6);
    assert!(metric(&registry, "headroom_config_reload_success") > 0.5);
    assert!(live.page().contains("is in effect"));
}

/// A token that is sent from the first second on, while the one that guards it waits for a start, would be lent till then.
#[test]
fn what_is_in_effect_until_the_next_start_must_go_together_too() {
    let registry = Registry::new();
    let target = "target: {pprof: \"http://localhost:6060/\", timeout: 3s";
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), format!("agent: {{{target}}}}}")).expect("a file");
    let inputs = Inputs { file: Some(file.path().to_owned()), ..Inputs::default() };
    let live = Live::<AgentConfig>::start(inputs, &registry).expect("a good file");
    let text = format!("agent: {{{target}, bearerTokenFile: /t}}, debug: {{tokenFile: /d}}}}");
    live.seen(Ok(text.clone()));
    live.seen(Ok(text));
    assert_eq!(live.current().config.target.bearer_token_file, None);
    let page = live.page();
    assert!(page.contains("is NOT in effect"), "{page}");
    assert!(page.contains("(a start is needed for agent.debug.tokenFile)"), "{page}");
}

#[test]
fn a_file_that_is_being_written_is_not_taken() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), "agent: {target: {timeout: 3s}}").expect("a file");
    let inputs = Inputs { file: Some(file.path().to_owned()), ..Inputs::default() };
    let live = Live::<AgentConfig>::start(inputs, &Registry::new()).expect("a good file");
    let timeout = || live.current().config.target.timeout.as_secs();
    live.seen(Ok("agent: {}".to_owned()));
    live.seen(Ok("agent: {target: {timeout: 8s}}".to_owned()));
    assert_eq!(timeout(), 3);
    live.seen(Ok("agent: {target: {timeout: 8s}}".to_owned()));
    assert_eq!(timeout(), 8);
    live.seen(Err("gone".to_owned()));
    live.seen(Err("gone".to_owned()));
    assert_eq!(timeout(), 8);
    assert!(live.page().contains("gone"));
}
