#!/bin/sh
# Grants a daemon what it needs of Kafka, and nothing else. Run by an administrator, once; running it again changes nothing.
#
#   BOOTSTRAP=broker:9093 COMMAND_CONFIG=admin.properties PRINCIPAL=User:trainer TOPIC=clicks \
#   GROUPS_READ="clicks-lag clicks-owners" DEAD_LETTERS=clicks-dead sh acls.sh
#
# GROUPS_READ: source.group_id and failover.group_id, where the job has them. DEAD_LETTERS: the topic of
# training.bad_samples.dead_letters, where it has one. Of a daemon with a certificate instead of a password the
# principal is its subject: PRINCIPAL="User:CN=trainer".
set -eu

: "${BOOTSTRAP:?host:port of a broker}" "${PRINCIPAL:?User:NAME}" "${TOPIC:?the topic that is learned}"
grant() {
    kafka-acls.sh --bootstrap-server "$BOOTSTRAP" ${COMMAND_CONFIG:+--command-config "$COMMAND_CONFIG"} \
        --add --allow-principal "$PRINCIPAL" "$@"
}

# DescribeConfigs: `streamtrain doctor` compares the topic's retention with the lag.
grant --topic "$TOPIC" --operation Read --operation Describe --operation DescribeConfigs
for group in ${GROUPS_READ:-}; do
    set -- "$@" --group "$group"
done
[ $# -eq 0 ] || grant "$@" --operation Read
# Since Kafka 3.0, Write on a topic is enough for an idempotent producer.
[ -z "${DEAD_LETTERS:-}" ] || grant --topic "$DEAD_LETTERS" --operation Write --operation Describe
