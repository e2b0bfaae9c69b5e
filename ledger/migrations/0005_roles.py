from django.db import migrations

from recovery import roles


def grant(apps, schema_editor):
    roles.grant(
        apps,
        schema_editor,
        {
            roles.VIEWER: roles.viewing(apps, "ledger"),
            roles.OPERATOR: [
                "ledger.redrive_outboxentry",
                "ledger.discard_outboxentry",
                "ledger.view_payload",
            ],
            roles.ADMINISTRATOR: ["ledger.edit_outboxentry", "ledger.change_account"],
        },
    )


class Migration(migrations.Migration):

    dependencies = [
        ('ledger', '0004_plans'),
        ('recovery', '0006_roles'),
    ]

    operations = [
        migrations.AlterModelOptions(
            name='outboxentry',
            options={'ordering': ['-id'], 'permissions': [('redrive_outboxentry', 'Can redrive dead outbox entries'), ('edit_outboxentry', 'Can edit dead outbox entries'), ('discard_outboxentry', 'Can discard dead outbox entries'), ('view_payload', 'Can see payloads')], 'verbose_name': 'outbox entry', 'verbose_name_plural': 'outbox entries'},
        ),
        migrations.RunPython(grant, migrations.RunPython.noop, elidable=False),
    ]
