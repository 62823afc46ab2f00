// express-session with connect-redis.

const express = require("express");
const session = require("express-session");
const { RedisStore } = require("connect-redis");
const { createClient } = require("redis");

const payload = {
  user: 0, name: "user number 1", email: "user1@mail.example",
  roles: ["reader", "writer", "group1"], locale: "en_GB",
  cart: [0, 1, 2, 3].map((n) => ({ item: 1 + n, count: n + 1 })),
  seen: "2026-11-02T12:00:00", note: "1".padStart(180, "0"),
};

const client = createClient({ socket: { port: Number(process.argv[3]) } });
client.connect().then(() => {
  const app = express();
  app.get("/bare", (request, response) => response.end("ok"));
  app.use(session({
    store: new RedisStore({ client }), secret: "x", resave: false, saveUninitialized: false,
  }));
  app.get("/count", (request, response) => {
    if (!("user" in request.session)) Object.assign(request.session, payload);
    request.session.user += 1;
    response.end(String(request.session.user));
  });
  app.listen(Number(process.argv[2]), "127.0.0.1");
});
