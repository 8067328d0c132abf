#!/usr/bin/env bash
# GPUs as a user meets them. Without one (no module, or no driver): --device cuda is refused with the reason, auto computes
# on the CPU. Where the host runtime stands in for one: the demo's captions equal the CPU's (a token may differ where two
# are nearly as likely), and are the same bytes over any number of stages.
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
for stages in 2 4; do
  caption more "${job[@]}" --device cuda --stages $stages
  same one/captions.jsonl more/captions.jsonl "$stages stages on GPUs"
done
pair=("$LVPIPE" caption --model "$MODEL" "${job[@]}" --device cuda --stages 2)
LVPIPE_NCCL=0 run 0 "${pair[@]}" --output "$work/staged"
says "rows between ranks 1 and 2 go through the hosts' memory: NCCL is not on both"
same one/captions.jsonl staged/captions.jsonl "2 stages on GPUs without NCCL"
export LVPIPE_SILENCE_SECONDS=4
LVP_CUDAHOST_NCCL=silent=1 run 4 "${pair[@]}" --output "$work/broken" --max-restarts 0
says "bytes did not move for 4 s"
LVP_CUDAHOST_NCCL=gone=1 run 4 "${pair[@]}" --output "$work/broken" --max-restarts 0
says "to rank 2: a transfer: remote process exited"
LVP_CUDAHOST_NCCL=shrink=2 run 4 "${pair[@]}" --output "$work/broken" --max-restarts 0
says "NCCL: receiving from rank 1: a transfer: invalid usage"
unset LVPIPE_SILENCE_SECONDS

# Tokens that differ from the CPU's: a share below 1 in 100.
tokens() { jq -c '.token_ids[]' "$work/$1/captions.jsonl"; }
total=$(tokens cpu | wc -l)
differ=$(paste <(tokens cpu) <(tokens one) | awk '$1 != $2' | wc -l)
echo "$differ of $total tokens differ from the CPU's"
((100 * differ <= total)) || fail "$differ of $total tokens differ from the CPU's"

LVP_CUDAHOST_DEVICES=1 run 2 "$LVPIPE" caption --model "$MODEL" --output "$work/shared" "${job[@]}" --device cuda --stages 2
says "would share GPU"
LVPIPE_SHARE_GPUS=1 LVP_CUDAHOST_DEVICES=1 caption shared "${job[@]}" --device cuda --stages 2
same one/captions.jsonl shared/captions.jsonl "two ranks on one GPU"

LVP_CUDAHOST_DEVICES=0 run 2 "$LVPIPE" caption --model "$MODEL" --output "$work/none" "${job[@]}" --device cuda
says "no usable GPU: driver"
LVP_CUDAHOST_DEVICES=0 caption auto "${job[@]}"
same cpu/captions.jsonl auto/captions.jsonl "--device auto without a GPU"

LVP_CUDAHOST_FAIL=3000 run 4 "$LVPIPE" caption --model "$MODEL" --output "$work/lost" "${job[@]}" --device cuda --max-restarts 0
says "GPU 0 failed"
finish
