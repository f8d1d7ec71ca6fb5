#!/usr/bin/env bash
# The stages of continuous delivery, the same for every CI system. Each verb runs as a job of the cluster that
# RAY_API_SERVER_ADDRESS names (RAY_AUTH_MODE=token and RAY_AUTH_TOKEN with it), or in this process where none is named.
#
#   pipeline.sh validate CONFIG             every problem of the file with its place, then the tests of the project
#   pipeline.sh train CONFIG                train, register, ask the gate; writes OUT/report.md and OUT/version
#   pipeline.sh deploy CONFIG               deploy MODEL_VERSION, or what OUT/version names, with DEPLOY_OPTIONS
#   pipeline.sh nightly CONFIG              the tests marked soak, then drift and quality of the live model
#
# OUT/version and MODEL_VERSION are VERSION@DIGEST: where that version has another digest, as in the MLflow of another
# cluster, nothing is deployed. A state that does not know it, beside the same MLflow, asks its own gate before.
# DEPLOY_OPTIONS="--steps 10,50,100 --bake 10m --wait" gives it the traffic step by step; without, it gets all at once.
#
# Values that replace the file's follow CONFIG: train.lr=0.01. OUT is the folder of results (raymlops-ci), ENV_NAME the
# overlay env/NAME.yaml. The exit code is that of the verb that failed: 4 refused by the gate, 6 drift or worse answers.
#
# DELIVERY names a delivery, such as by its commit: each of its jobs is submitted once. Who runs the same stage with the
# same words again follows a job that runs, takes the result of one that ran, and runs again what failed or was stopped.
set -euo pipefail

if [ $# -lt 2 ]; then
  sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
stage=$1 config=$2
shift 2
overrides=("$@")
out=${OUT:-raymlops-ci}
env_option=()
if [ -n "${ENV_NAME:-}" ]; then env_option=(--env "$ENV_NAME"); fi
from=(--config "$config" "${env_option[@]}" "${overrides[@]}")
mkdir -p "$out"

# Print a value of a verb's result: value FILE KEY...
value() {
  python3 -c 'import functools, json, sys
print(functools.reduce(dict.__getitem__, sys.argv[2:], json.load(open(sys.argv[1]))))' "$@"
}

# Run a verb and leave its result in OUT/NAME.json: verb NAME WORD...
verb() {
  local name=$1 code=0
  shift
  if [ -z "${RAY_API_SERVER_ADDRESS:-}" ]; then
    raymlops "$@" --json >"$out/$name.json" || code=$?
  else
    local log
    log=$(mktemp) # not in the folder, whose files Ray uploads under a digest of them
    job "$log" raymlops "$@" || code=$?
    mv "$log" "$out/$name.log"
    sed -n 's/^RAYMLOPS_RESULT //p' "$out/$name.log" | tail -n 1 >"$out/$name.json"
    if [ "$code" -ne 0 ]; then code=$(value "$out/$name.json" exit_code 2>/dev/null || echo "$code"); fi
  fi
  if [ "$code" -ne 0 ]; then value "$out/$name.json" error message >&2 2>/dev/null || true; fi
  return "$code"
}

# Run a command as a job and show its log, which FILE keeps: job FILE WORD...
job() {
  local log=$1 first id attempt=1 state code
  shift
  first="ci-$(date +%s)-$$-$RANDOM"
  if [ -n "${DELIVERY:-}" ]; then first="ci-$(printf '%s\0' "$DELIVERY" "$@" | sha256sum | cut -c 1-20)"; fi
  id=$first
  while :; do
    state=$(known "$id")
    if [ -z "$state" ]; then
      code=0
      follow "$id" "$log" ray job submit --submission-id "$id" --working-dir . -- "$@" || code=$?
      if grep -q '^RAYMLOPS_RESULT ' "$log"; then return "$code"; fi
      # Ray's command ends with 0 where its connection does, whatever becomes of the job.
      if [ "$code" -eq 0 ]; then
        until_ended "$id" "$log"
        outcome "$id" "$state"
        return
      fi
      # It is refused where another run of the delivery submitted the job in between.
      state=$(known "$id")
      if [ "$state" != running ] && [ "$state" != succeeded ]; then return "$code"; fi
    fi
    if [ "$state" = running ] || [ "$state" = succeeded ]; then
      echo "the job $id of this delivery is known: $state; its log follows" >&2
      until_ended "$id" "$log"
      # Who ran it before was ended and stopped it: it runs again.
      if [ "$state" != "was stopped" ]; then
        outcome "$id" "$state"
        return
      fi
    fi
    attempt=$((attempt + 1))
    id="$first-$attempt"
  done
}

# Print how a job of a delivery is; nothing where it is not known, or no delivery is named: known ID
known() {
  if [ -n "${DELIVERY:-}" ]; then state_of "$1"; fi
}

# Show the log of a job that is known, which FILE keeps; how it ended is its caller's state: until_ended ID FILE
until_ended() {
  state=running
  while [ "$state" = running ]; do
    follow "$1" "$2" ray job logs --follow "$1" || true
    state=$(state_of "$1")
    if [ "$state" = running ]; then sleep 1; fi
  done
}

# Return what becomes of a stage by how a job ended: outcome ID STATE
outcome() {
  if [ "$2" = succeeded ]; then return 0; fi
  if [ -n "$2" ]; then return 1; fi
  echo "the cluster at $RAY_API_SERVER_ADDRESS does not answer any more, or does not know the job $1: how it ended is not known" >&2
  return 5
}

# Show what a command prints of a job, which FILE keeps: follow ID FILE WORD... A run of the CI that is cancelled stops it.
follow() {
  local id=$1 log=$2 code=0 printing
  shift 2
  trap 'ray job stop --no-wait "$id" >&2; exit 130' INT TERM
  "$@" >"$log" 2>&1 &
  printing=$!
  tail --pid="$printing" -n +1 -f "$log" >&2 &
  wait "$printing" || code=$?
  wait "$!"
  trap - INT TERM
  return "$code"
}

# Print how a job is: running, succeeded, failed, was stopped; nothing where the cluster does not know it or not answer.
state_of() {
  { ray job status "$1" 2>&1 || true; } |
    sed -nE "s/.*Job '[^']*' (succeeded|failed|was stopped).*/\1/p; s/.*Status for job .*/running/p" | head -n 1
}

report() {
  python3 - "$out" <<'PY'
import json, pathlib, sys

def result(name):
    try:
        return json.loads((pathlib.Path(sys.argv[1]) / f"{name}.json").read_text())
    except (OSError, ValueError):
        return {}

train, version, gate = (result(name) for name in ("train", "register", "gate"))
if "decision" not in gate:
    failed = next((one["error"] for one in (train, version, gate) if "error" in one), {"message": "see the log"})
    refused = failed.get("type") == "GateRefusedError"
    print("### The gate refused the version\n" if refused else "### No version\n")
    print("```\n" + failed["message"] + "\n```")
else:
    print(f"### {version['name']} version {version['version']} passes the gate\n")
    print("| | check | got | allowed |\n| --- | --- | --- | --- |")
    for check in gate["decision"]["checks"]:
        got = check["got"] if check["got"] is None else f"{check['got']:.5g}"
        print(f"| {'pass' if check['passed'] else 'FAIL'} | {check['name']} | {got} | {check['allowed']} |")
    print(f"\nrun `{version['run_id']}`, digest `{version['bundle']['digest'][:12]}`")
PY
}

# Run the project's tests that a marker names. It is no failure if none has it.
tests() {
  local code=0
  python3 -m pytest -q -m "$1" || code=$?
  if [ "$code" -eq 5 ]; then
    echo "the project has no test that is '$1'" >&2
    return 0
  fi
  return "$code"
}

case $stage in
validate)
  raymlops validate "$config" "${env_option[@]}" "${overrides[@]}"
  tests 'not soak'
  ;;
train)
  rm -f "$out"/{train,register,gate}.json "$out/version"
  trap 'report >"$out/report.md"; cat "$out/report.md"' EXIT
  verb train train "${from[@]}"
  verb register models register "$(value "$out/train.json" run_id)" "${from[@]}"
  verb gate models gate "${from[@]}" --version "$(value "$out/register.json" version)"
  version=$(value "$out/register.json" version)
  digest=$(value "$out/register.json" bundle digest)
  echo "$version@$digest" >"$out/version"
  ;;
deploy)
  if [ -n "${MODEL_VERSION:-}" ]; then echo "$MODEL_VERSION" >"$out/version"; fi
  if [ ! -s "$out/version" ]; then
    echo "$out/version names no version: run the stage train first" >&2
    exit 2
  fi
  IFS=@ read -r version digest <"$out/version" || true # its last line may have no end
  if [ -z "$digest" ]; then
    echo "version $version is another model in another MLflow: name it as VERSION@DIGEST, as the stage train does" >&2
    exit 2
  fi
  # DEPLOY_OPTIONS is a list of words, none of which names files.
  set -f
  # shellcheck disable=SC2206
  words=(deploy "${from[@]}" --version "$version" --digest "$digest" --yes ${DEPLOY_OPTIONS:-})
  set +f
  code=0
  verb deploy "${words[@]}" || code=$?
  if [ "$code" -eq 4 ] && [ "$(value "$out/deploy.json" error type 2>/dev/null)" = UnrecordedError ]; then
    echo "the gate of this state is asked, and the digest recorded here" >&2
    verb adopt models gate "${from[@]}" --version "$version" --adopt "$digest"
    code=0
    verb deploy "${words[@]}" || code=$?
  fi
  exit "$code"
  ;;
nightly)
  tests soak
  code=0
  verb drift drift "${from[@]}" --fail-on-drift || code=$?
  verb quality quality "${from[@]}" --fail-on-worse || code=$?
  exit "$code"
  ;;
*)
  echo "$stage is no stage: validate, train, deploy or nightly" >&2
  exit 2
  ;;
esac
