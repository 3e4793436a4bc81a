"""The three services of the guide's event-driven part, on RabbitMQ: `service.py ROLE BROKER`.

They know nothing of a mesh: no certificate, no proxy, no retry.

  order-service         publishes order.created for each line that it reads, and waits until the broker has it
  inventory-service     reserves what an order needs, or says inventory.shortage
  notification-service  tells the customer
"""

import json
import sys

import pika

EXCHANGE = "app_events"
STOCK = {"book": 2}


def connect(broker):
    # No heartbeat: a connection that says nothing for hours stays.
    channel = pika.BlockingConnection(pika.ConnectionParameters(broker, 5672, heartbeat=0)).channel()
    channel.exchange_declare(EXCHANGE, "topic", durable=True)
    return channel


def publish(channel, event, data):
    properties = pika.BasicProperties(delivery_mode=2, content_type="application/json")
    channel.basic_publish(EXCHANGE, event, json.dumps(data).encode(), properties, mandatory=True)


def order_service(channel):
    channel.confirm_delivery()
    print("ready", flush=True)
    for number, line in enumerate(sys.stdin, 1):
        product, quantity = line.split()
        order = {"orderId": number, "product": product, "quantity": int(quantity)}
        publish(channel, "order.created", order)
        print(f"order {number} created", flush=True)


def subscribe(channel, queue, events, handle):
    channel.queue_declare(queue, durable=True)
    for event in events:
        channel.queue_bind(queue, EXCHANGE, event)
    channel.basic_qos(prefetch_count=1)

    def received(channel, method, _, body):
        handle(method.routing_key, json.loads(body))
        # What isn't acknowledged comes again.
        channel.basic_ack(method.delivery_tag)

    channel.basic_consume(queue, received)
    print("ready", flush=True)
    channel.start_consuming()


def inventory_service(channel):
    def handle(_, order):
        available = STOCK.get(order["product"], 0)
        if available < order["quantity"]:
            publish(channel, "inventory.shortage", {**order, "available": available})
            print(f"order {order['orderId']}: shortage", flush=True)
        else:
            STOCK[order["product"]] = available - order["quantity"]
            print(f"order {order['orderId']}: reserved", flush=True)

    subscribe(channel, "inventory", ["order.created"], handle)


def notification_service(channel):
    def handle(event, order):
        print(f"order {order['orderId']}: customer told of {event}", flush=True)

    subscribe(channel, "notification", ["order.created", "inventory.shortage"], handle)


ROLES = {
    "order-service": order_service,
    "inventory-service": inventory_service,
    "notification-service": notification_service,
}

if __name__ == "__main__":
    ROLES[sys.argv[1]](connect(sys.argv[2]))
