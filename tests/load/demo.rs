//! The demo's story, sabotaged step by step.

use leno_tests::process::demo;

use crate::LOAD;

/// Each step of the demo, with words of the reason that it fails for when it is sabotaged.
const SABOTAGED: [(&str, &str); 14] = [
    ("programs", "5 leno-proxy"),
    ("split", "one in ten was meant"),
    ("mtls", "an app saw \"\""),
    ("plaintext", "a plaintext request reached the app"),
    ("foreign", "a foreigner was let in"),
    ("denied", "web was answered with 200"),
    ("ejection", "the broken app saw"),
    ("retry", "of 60 requests failed"),
    ("rollout", "SIGKILL"),
    ("reload", "traffic did not follow the YAML"),
    ("overflow", "5 were served and 0 refused"),
    ("rotation", "the same certificate"),
    ("control-plane", "requests failed"),
    ("restart", "no request was served"),
];

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_notices_when_a_step_does_not_hold() {
    let _shared = LOAD.read().await;
    for (step, reason) in SABOTAGED {
        let mut command = tokio::process::Command::from(demo().await);
        command.args(["--once", "--break", step]).kill_on_drop(true);
        let output = command.output().await.expect("it starts");
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert!(!output.status.success(), "{step}: {text}");
        let failed = format!("FAILED at step {step}: ");
        let why = text.split(&failed).nth(1);
        assert!(
            why.is_some_and(|why| why.contains(reason)),
            "{step}: {text}"
        );
    }
}
