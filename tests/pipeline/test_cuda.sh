#!/usr/bin/env bash
# GPUs as a user meets them. Without one (no module, or no driver): --device cuda is refused with the reason, auto computes
# on the CPU. Where the host runtime stands in for one: the demo's captions equal the CPU's (a token may differ where two
# are nearly as likely), and are the same bytes over any number of stages, by NCCL and by MPI.
. "$(dirname "$0")/lib.sh"

job=(--input "$IMAGES" --max-new-tokens 24 --limit 4 --overwrite)
caption cpu "${job[@]}" --device cpu

if [[ -z ${LVP_CUDA_HOST:-} ]]; then
  if "$LVPIPE" --version | grep -q '^GPU  *[0-9]* x '; then # a real one
    caption gpu "${job[@]}" --device cuda
    finish
    exit 0
  fi
  run 2 "$LVPIPE" caption --model "$MODEL" --output "$work/refused" "${job[@]}" --device cuda
  says "no usable GPU: "
  caption auto "${job[@]}" --device auto
  same cpu/captions.jsonl auto/captions.jsonl "--device auto without a GPU"
  echo "no GPU here: its captions were not compared"
  finish
  exit 0
fi

export LVP_CUDAHOST_DEVICES=4
caption one "${job[@]}" --device cuda
expect "numeric path" "$(jq -r .world.numeric_path "$work/one/run.json")" cuda
transport() { expect "transport of $1" "$(jq -r .world.transport "$work/$1/run.json")" "$2"; }
for stages in 2 4; do
  caption more "${job[@]}" --device cuda --stages $stages
  transport more nccl
  same one/captions.jsonl more/captions.jsonl "$stages stages on GPUs, by NCCL"
done
LVP_CUDAHOST_NCCL=missing run 0 "$LVPIPE" caption --model "$MODEL" --output "$work/staged" "${job[@]}" --device cuda --stages 4
expect "lines about a missing NCCL" "$(grep -c "go through the hosts' memory: rank 1: libnccl.so.2" "$work/stderr")" 1
transport staged mpi
same one/captions.jsonl staged/captions.jsonl "4 stages on GPUs, by MPI"

few=(--model "$MODEL" "${job[@]}" --limit 2 --stages 3 --max-restarts 0)
LVP_CUDAHOST_LAZY=1 caption lazy "${few[@]}" --device cuda
transport lazy nccl
head -n 2 "$work/one/captions.jsonl" >"$work/two.jsonl"
same two.jsonl lazy/captions.jsonl "NCCL with streams as late as they may be"

# Two ranks with GPUs and one without.
mixed=("$LVPIPE" caption "${few[@]}" --limit 1 --output "$work/mixed" -q)
run 0 mpirun --oversubscribe --bind-to none -n 3 -x LVP_CUDAHOST_DEVICES=2 "${mixed[@]}" : -n 1 -x LVP_CUDAHOST_DEVICES=0 "${mixed[@]}"
transport mixed mpi+nccl
expect "tokens of GPUs and a CPU together" "$(jq -c .token_ids "$work/mixed/captions.jsonl")" "$(head -n 1 "$work/cpu/captions.jsonl" | jq -c .token_ids)"

# A rank that lives and does not send what it announced.
LVPIPE_SILENCE_SECONDS=4 LVP_CUDAHOST_NCCL=silent:2 run 4 "$LVPIPE" caption "${few[@]}" --output "$work/silent" --device cuda
says "error: NCCL: receiving from rank 1: nothing moved for 7 s"

run 0 env LVPIPE_NCCL=0 "$LVPIPE" --version
grep -q 'no nccl: LVPIPE_NCCL=0' "$work/stdout" || fail "LVPIPE_NCCL=0 does not turn NCCL off" "$work/stdout"

# Tokens that differ from the CPU's: a share below 1 in 100.
tokens() { jq -c '.token_ids[]' "$work/$1/captions.jsonl"; }
total=$(tokens cpu | wc -l)
differ=$(paste <(tokens cpu) <(tokens one) | awk '$1 != $2' | wc -l)
echo "$differ of $total tokens differ from the CPU's"
((100 * differ <= total)) || fail "$differ of $total tokens differ from the CPU's"

LVP_CUDAHOST_DEVICES=1 run 2 "$LVPIPE" caption --model "$MODEL" --output "$work/shared" "${job[@]}" --device cuda --stages 2
says "would share GPU"
LVPIPE_SHARE_GPUS=1 LVP_CUDAHOST_DEVICES=1 caption shared "${job[@]}" --device cuda --stages 2
transport shared mpi
same one/captions.jsonl shared/captions.jsonl "two ranks on one GPU"

LVP_CUDAHOST_DEVICES=0 run 2 "$LVPIPE" caption --model "$MODEL" --output "$work/none" "${job[@]}" --device cuda
says "no usable GPU: driver"
LVP_CUDAHOST_DEVICES=0 caption auto "${job[@]}"
same cpu/captions.jsonl auto/captions.jsonl "--device auto without a GPU"

# GPUs that the module has no code for: old ones do not count, new ones are found out when they are opened.
LVP_CUDAHOST_CAPABILITY=7.5 run 2 "$LVPIPE" caption --model "$MODEL" --output "$work/old" "${job[@]}" --device cuda
says "no usable GPU: 4 x host emulation (sm_75) left out: older than sm_80"
LVP_CUDAHOST_CAPABILITY=7.0,9.0 LVP_CUDAHOST_DEVICES=2 caption newer "${job[@]}" --device cuda
same one/captions.jsonl newer/captions.jsonl "the second GPU, where the first is too old"
LVP_CUDAHOST_CAPABILITY=13.0 run 2 "$LVPIPE" caption --model "$MODEL" --output "$work/new" "${job[@]}" --device cuda --max-restarts 0
says "GPU 0 cannot be opened: no kernel image"

LVP_CUDAHOST_FAIL=3000 run 4 "$LVPIPE" caption --model "$MODEL" --output "$work/lost" "${job[@]}" --device cuda --max-restarts 0
says "GPU 0 failed"
finish
